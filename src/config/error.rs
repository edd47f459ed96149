//! What is wrong with a config, and where.

use std::{fmt, io};

/// One message that says file, line, key, what is wrong and what is expected.
/// Values that came from the environment or from a file are never in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    file: String,
    /// From 1. Absent if it is about the file as a whole.
    line: Option<usize>,
    /// As it is written: `route.snapshot.url`. Absent in syntax errors.
    key: Option<String>,
    what: String,
}

impl ConfigError {
    pub(super) fn unreadable(file: &str, error: &io::Error) -> Self {
        Self::of_file(file, format!("can't be read: {error}"))
    }

    /// An error of a file as a whole.
    pub(super) fn of_file(file: &str, what: impl fmt::Display) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            key: None,
            what: what.to_string(),
        }
    }

    pub(super) fn syntax(file: &str, line: usize, what: &str) -> Self {
        Self {
            file: file.to_owned(),
            line: Some(line),
            key: None,
            what: format!("is not TOML: {what}"),
        }
    }

    pub(super) fn wrong(file: &str, line: usize, key: &str, what: impl fmt::Display) -> Self {
        Self {
            file: file.to_owned(),
            line: Some(line),
            key: (!key.is_empty()).then(|| key.to_owned()),
            what: what.to_string(),
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(key) = &self.key {
            write!(f, ": {key}")?;
        }
        write!(f, ": {}", self.what)
    }
}

impl std::error::Error for ConfigError {}
