//! The wire: frames, formats, close codes.

pub mod outcome;
