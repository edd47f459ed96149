//! Texts with `{param}`, `{query.x}` and `{claims.sub}` in them, compiled and checked at start.

use std::collections::BTreeMap;

/// The values of one request that a template may use.
#[derive(Debug, Default, Clone)]
pub struct Values {
    /// Path parameters by name (`job_id`) and query variables (`query.x`): checked against the
    /// route's patterns already.
    pub params: BTreeMap<String, String>,
    /// The verified claims; empty on a public route.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// A compiled template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    /// `job_id` or `query.x`.
    Param(String),
    Claim(String),
}

/// A value that a template needs can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Absent, too long, of another type than string or integer, or with forbidden characters.
    #[error("claim {0:?} is unusable")]
    Claim(String),
    /// A query variable that is absent.
    #[error("parameter {0:?} is missing")]
    Param(String),
}
