//! `[route.message]` and `[route.slow]`.

use std::time::Duration;

use super::ConfigError;
use super::source::Source;
use super::value::{Wrong, any, any_of, not_empty, one_of, positive_duration, size_from};
use super::written::{self, ScalarValue, Text};

/// `[route.message]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Message {
    /// How an entry is written.
    pub format: Format,
    /// Whether frames other than snapshots and events reach the client.
    pub control: bool,
    /// How a snapshot is wrapped; only with verbatim and merge. Empty: the body as it is.
    pub snapshot_template: String,
}

/// How an entry becomes the text of a message.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Format {
    /// What is made of the entry.
    pub kind: FormatKind,
    /// A larger payload is not sent.
    pub max_bytes: usize,
}

/// What is made of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum FormatKind {
    /// The field's value as `data` of an event frame; without a field all of them as an object.
    Envelope {
        /// `None`: all fields.
        field: Option<String>,
    },
    /// The field's text as it is.
    Verbatim {
        /// The entry's field.
        field: String,
    },
    /// The field's JSON object, plus its cursor.
    Merge {
        /// The entry's field.
        field: String,
        /// The key that gets the cursor.
        id_key: String,
    },
}

/// `[route.slow]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow {
    /// No byte taken by the kernel for this long: the connection is reset.
    pub write_timeout: Duration,
    /// Entries; `None`: no limit.
    pub max_lag: Option<u64>,
    /// What happens beyond `max_lag`.
    pub then: WhenLagging,
}

/// What happens to a client that lags too far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenLagging {
    /// Closed, 4408.
    Close,
    /// A new snapshot, and on from now; the route has a snapshot.
    Resync,
}

#[derive(Clone, Copy)]
enum Named {
    Envelope,
    Verbatim,
    Merge,
}

impl written::Message {
    pub(super) fn check(
        &self,
        has_snapshot: bool,
        source: &Source<'_>,
    ) -> Result<Message, ConfigError> {
        Ok(Message {
            format: Format {
                kind: self.kind(source)?,
                max_bytes: source.parse_or(self.max_bytes.as_ref(), "1MiB", size_from("1B"))?,
            },
            control: source.flag_or(self.control.as_ref(), true)?,
            snapshot_template: self.snapshot_template(has_snapshot, source)?,
        })
    }

    fn kind(&self, source: &Source<'_>) -> Result<FormatKind, ConfigError> {
        let named = self.named(source)?;
        let id_key = source.parse_or(self.id_key.as_ref(), "id", not_empty)?;
        if let Some(written) = &self.id_key
            && !matches!(named, Named::Merge)
            && id_key != "id"
        {
            return Err(source.error(
                &written.span(),
                r#"has a meaning only with format = "merge"; expected that, or no `id_key`"#,
            ));
        }
        let field = |format: &Text| match &self.field {
            Some(field) => source.parse(field, not_empty),
            None => Err(source.error(
                &format.span(),
                format!(
                    "{:?} needs a field of the entry; expected `field` beside it",
                    format.get_ref()
                ),
            )),
        };
        match (named, &self.format) {
            (Named::Verbatim, Some(format)) => Ok(FormatKind::Verbatim {
                field: field(format)?,
            }),
            (Named::Merge, Some(format)) => Ok(FormatKind::Merge {
                field: field(format)?,
                id_key,
            }),
            (Named::Envelope | Named::Verbatim | Named::Merge, _) => Ok(FormatKind::Envelope {
                field: self
                    .field
                    .as_ref()
                    .map(|field| source.parse(field, not_empty))
                    .transpose()?,
            }),
        }
    }

    fn named(&self, source: &Source<'_>) -> Result<Named, ConfigError> {
        let formats = [
            ("envelope", Named::Envelope),
            ("verbatim", Named::Verbatim),
            ("merge", Named::Merge),
        ];
        source.parse_or(self.format.as_ref(), "envelope", one_of(&formats))
    }

    fn snapshot_template(
        &self,
        has_snapshot: bool,
        source: &Source<'_>,
    ) -> Result<String, ConfigError> {
        let Some(written) = &self.snapshot_template else {
            return Ok(String::new());
        };
        let template = source.parse(written, snapshot_template)?;
        let needed = match self.named(source)? {
            _ if template.is_empty() => None,
            Named::Envelope => Some(
                r#"has a meaning only with format = "verbatim" or "merge"; expected one of them, or no template"#,
            ),
            Named::Verbatim | Named::Merge if !has_snapshot => {
                Some("wraps the snapshot; expected a [route.snapshot], or no template")
            }
            Named::Verbatim | Named::Merge => None,
        };
        match needed {
            Some(what) => Err(source.error(&written.span(), what)),
            None => Ok(template),
        }
    }
}

/// Braces are the text's own, unless they hold a word: that is a placeholder.
fn snapshot_template(text: &str) -> Result<String, Wrong> {
    const PLACEHOLDERS: [&str; 3] = ["{body}", "{cursor}", "{reason}"];
    let is_word = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b))
    };
    let unknown = text.split('{').skip(1).find_map(|after| {
        let (word, _) = after.split_once('}')?;
        let placeholder = format!("{{{word}}}");
        (is_word(word) && !PLACEHOLDERS.contains(&placeholder.as_str())).then_some(placeholder)
    });
    if let Some(unknown) = unknown {
        let known = any_of(PLACEHOLDERS.map(str::to_owned));
        return Err(Wrong::new(format!(
            "has the placeholder {unknown}; expected {known}"
        )));
    }
    if !text.is_empty() && !text.contains("{body}") {
        return Err(Wrong::new("leaves the snapshot out; expected {body} in it"));
    }
    any(text)
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
        source.not_supported_unless(self.conflate_by.as_ref(), "/id")?;
        let Some(written) = &self.then else {
            return Ok(WhenLagging::Close);
        };
        let error = |what: &str| Err(source.error(&written.span(), what));
        match source.parse(written, then)? {
            WhenLagging::Close => Ok(WhenLagging::Close),
            WhenLagging::Resync if max_lag.is_none() => {
                error(r#""resync" never happens without a `max_lag`; expected one beside it"#)
            }
            WhenLagging::Resync if !has_snapshot => {
                error(r#""resync" needs a snapshot; expected a [route.snapshot], or "close""#)
            }
            WhenLagging::Resync => Ok(WhenLagging::Resync),
        }
    }
}

fn then(text: &str) -> Result<WhenLagging, Wrong> {
    if text == "conflate" {
        return Err(Wrong::new(
            r#"is not supported yet; expected "close" or "resync""#,
        ));
    }
    one_of(&[
        ("close", WhenLagging::Close),
        ("resync", WhenLagging::Resync),
    ])(text)
}
