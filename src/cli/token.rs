//! `relay token`: a token for development.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use relay::auth::mint::mint;
use relay::config::Config;
use serde_json::{Map, Value};

use super::{Failure, say};

#[derive(clap::Args)]
pub(super) struct Token {
    /// Whom the token is for.
    #[arg(long, value_name = "SUBJECT")]
    sub: String,
    /// How long it is valid.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// A claim; the value is JSON, or else a string. May be given several times.
    #[arg(long, value_name = "NAME=JSON", value_parser = claim)]
    claim: Vec<(String, Value)>,
}

impl Token {
    pub(super) fn run(self, file: &Path) -> Result<(), Failure> {
        let config = Config::load(file)?;
        let Some(jwt) = &config.auth.jwt else {
            let error = anyhow!(r#"auth.mode = "none": there is no key to sign a token with"#);
            return Err(Failure::Unusable(error));
        };
        let claims = Map::from_iter(self.claim);
        let token = mint(jwt, &self.sub, self.ttl, claims)
            .map_err(|error| Failure::Unusable(error.into()))?;
        Ok(say(&token)?)
    }
}

/// `role=admin` needs no quotes, but what begins like JSON has to be JSON.
fn claim(text: &str) -> Result<(String, Value), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=JSON")?;
    if name.is_empty() {
        return Err("expected a name before the =".to_owned());
    }
    let value = match serde_json::from_str(value) {
        Ok(value) => value,
        Err(error) if value.starts_with(['{', '[', '"']) => {
            return Err(format!("is not JSON: {error}"));
        }
        Err(_) => Value::from(value),
    };
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claims_are_json_or_else_strings() {
        let table = [
            ("role=admin", json!("admin")),
            (r#"role="admin""#, json!("admin")),
            ("level=3", json!(3)),
            ("admin=true", json!(true)),
            (r#"jobs=["a","b"]"#, json!(["a", "b"])),
            ("note=a=b", json!("a=b")),
            ("note=", json!("")),
        ];
        for (text, value) in table {
            assert_eq!(claim(text).unwrap().1, value, "{text}");
        }
    }

    #[test]
    fn broken_claims_are_refused() {
        for text in ["role", "=x", "jobs=[a]", r#"role="admin"#] {
            assert!(claim(text).is_err(), "{text}");
        }
    }
}
