//! `[route.message]`.

use super::ConfigError;
use super::source::Source;
use super::value::{Wrong, any, any_of, not_empty, one_of, size_from};
use super::written::{self, Text};

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
