//! `[route.slow]`.

use std::time::Duration;

use super::ConfigError;
use super::source::Source;
use super::value::{Wrong, one_of, positive_duration};
use super::written::{self, ScalarValue};

/// `[route.slow]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slow {
    /// No byte taken by the kernel for this long: the connection is reset.
    pub write_timeout: Duration,
    /// Entries; `None`: no limit.
    pub max_lag: Option<u64>,
    /// What happens beyond `max_lag`.
    pub then: WhenLagging,
}

/// What happens to a client that lags too far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhenLagging {
    /// Closed, 4408.
    Close,
    /// A new snapshot, and on from now; the route has a snapshot.
    Resync,
    /// Of entries with the same value at this place of their payload only the newest is sent.
    Conflate(JsonPointer),
}

/// A place in a JSON document (RFC 6901), below its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonPointer {
    /// The names of members and indices of elements on the way, unescaped; at least one.
    pub tokens: Vec<String>,
}

impl JsonPointer {
    /// `None` if the text is no pointer, or the one to the whole document.
    pub fn parse(text: &str) -> Option<Self> {
        let unescape = |token: &str| {
            let mut escapes = token.split('~').skip(1);
            let is_escaped = escapes.all(|rest| rest.starts_with(['0', '1']));
            is_escaped.then(|| token.replace("~1", "/").replace("~0", "~"))
        };
        let tokens = text.strip_prefix('/')?.split('/').map(unescape);
        Some(Self {
            tokens: tokens.collect::<Option<_>>()?,
        })
    }
}

#[derive(Clone, Copy)]
enum Named {
    Close,
    Resync,
    Conflate,
}

impl written::Slow {
    pub(super) fn check(
        &self,
        has_snapshot: bool,
        source: &Source<'_>,
    ) -> Result<Slow, ConfigError> {
        let max_lag = self.max_lag(source)?;
        Ok(Slow {
            write_timeout: source.parse_or(
                self.write_timeout.as_ref(),
                "15s",
                positive_duration,
            )?,
            max_lag,
            then: self.then(max_lag, has_snapshot, source)?,
        })
    }

    fn max_lag(&self, source: &Source<'_>) -> Result<Option<u64>, ConfigError> {
        let Some(written) = &self.max_lag else {
            return Ok(None);
        };
        let is_none = match written.get_ref() {
            ScalarValue::Text(text) => source.text_at(&written.span(), text)? == "none",
            ScalarValue::Integer(_) | ScalarValue::Flag(_) => false,
        };
        if is_none {
            return Ok(None);
        }
        let largest = u64::from(u32::MAX);
        match source.number_or(Some(written), 1, 1..=largest) {
            Ok(entries) => Ok(Some(entries)),
            Err(_) => Err(source.error(
                &written.span(),
                format!(r#"is no number of entries; expected one from 1 to {largest}, or "none""#),
            )),
        }
    }

    fn then(
        &self,
        max_lag: Option<u64>,
        has_snapshot: bool,
        source: &Source<'_>,
    ) -> Result<WhenLagging, ConfigError> {
        let names = [
            ("close", Named::Close),
            ("resync", Named::Resync),
            ("conflate", Named::Conflate),
        ];
        let named = source.parse_or(self.then.as_ref(), "close", one_of(&names))?;
        let conflate_by = self.conflate_by(named, source)?;
        let needed = match named {
            Named::Close => None,
            Named::Resync | Named::Conflate if max_lag.is_none() => {
                Some("never happens without a `max_lag`; expected one beside it")
            }
            Named::Resync if !has_snapshot => {
                Some(r#"needs a snapshot; expected a [route.snapshot], or "close""#)
            }
            Named::Resync | Named::Conflate => None,
        };
        if let (Some(what), Some(written)) = (needed, &self.then) {
            let name = source.text(written)?;
            return Err(source.error(&written.span(), format!("{name:?} {what}")));
        }
        Ok(match named {
            Named::Close => WhenLagging::Close,
            Named::Resync => WhenLagging::Resync,
            Named::Conflate => WhenLagging::Conflate(conflate_by),
        })
    }

    fn conflate_by(&self, then: Named, source: &Source<'_>) -> Result<JsonPointer, ConfigError> {
        let pointer = source.parse_or(self.conflate_by.as_ref(), CONFLATE_BY, pointer)?;
        match &self.conflate_by {
            Some(written)
                if !matches!(then, Named::Conflate) && source.text(written)? != CONFLATE_BY =>
            {
                let what = r#"has a meaning only with then = "conflate"; expected that, or no `conflate_by`"#;
                Err(source.error(&written.span(), what))
            }
            _ => Ok(pointer),
        }
    }
}

const CONFLATE_BY: &str = "/id";

fn pointer(text: &str) -> Result<JsonPointer, Wrong> {
    JsonPointer::parse(text).ok_or_else(|| {
        Wrong::new(
            r#"is no JSON pointer to a part of the payload; expected one such as "/id" or "/order/id""#,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_unescaped_as_the_specification_says() {
        let tokens = |text| JsonPointer::parse(text).map(|pointer| pointer.tokens);
        let some = |tokens: &[&str]| Some(tokens.iter().map(|t| (*t).to_owned()).collect());
        assert_eq!(tokens("/id"), some(&["id"]));
        assert_eq!(tokens("/a~1b/m~0n/0"), some(&["a/b", "m~n", "0"]));
        assert_eq!(tokens("/~01"), some(&["~1"]));
        assert_eq!(tokens("/"), some(&[""]));
        for text in ["", "id", "/a~", "/a~2", "#/id"] {
            assert_eq!(tokens(text), None, "{text}");
        }
    }
}
