//! The text of a config with its lines and keys: what turns written values into checked ones,
//! and says where one is wrong.

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::{Range, RangeInclusive};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;
use super::interpolate::{interpolate, is_interpolated};
use super::value::{Wrong, nearest};
use super::written::{self, Scalar, ScalarValue, Text, Texts};

/// Where something is written, in bytes of the file.
pub(super) type Span = Range<usize>;

pub(super) struct Source<'a> {
    file: &'a str,
    text: &'a str,
    environment: &'a dyn Fn(&str) -> Option<String>,
    /// The key of everything in the file by where it is written: `route.snapshot.url`.
    keys: HashMap<Span, String>,
}

impl<'a> Source<'a> {
    /// Reads the text as TOML with known keys only.
    pub(super) fn read(
        text: &'a str,
        file: &'a str,
        environment: &'a dyn Fn(&str) -> Option<String>,
    ) -> Result<(Self, written::Config), ConfigError> {
        let mut source = Self {
            file,
            text,
            environment,
            keys: HashMap::new(),
        };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().unwrap_or_default();
            let what = match error.message() {
                "duplicate key" => {
                    format!(
                        "the key {} is here twice",
                        text.get(at.clone()).unwrap_or_default()
                    )
                }
                message => message.to_owned(),
            };
            ConfigError::syntax(file, source.line(&at), &what)
        })?;
        note_keys(table.get_ref(), "", &mut source.keys);
        let written = written::Config::deserialize(toml::de::Deserializer::from(table))
            .map_err(|error| source.structure_error(&error))?;
        Ok((source, written))
    }

    /// An error of the key that is written here.
    pub(super) fn error(&self, at: &Span, what: impl Display) -> ConfigError {
        ConfigError::wrong(self.file, self.line(at), self.key(at), what)
    }

    /// An error of a key that should be in the table that is written here.
    pub(super) fn missing(&self, table: &Span, key: &str, what: impl Display) -> ConfigError {
        let key = match self.key(table) {
            "" => key.to_owned(),
            table => format!("{table}.{key}"),
        };
        ConfigError::wrong(self.file, self.line(table), &key, what)
    }

    /// The text with values put in.
    pub(super) fn text(&self, written: &Text) -> Result<String, ConfigError> {
        interpolate(written.get_ref(), self.environment)
            .map_err(|what| self.error(&written.span(), what))
    }

    /// A text in one of a table's values, with values put in.
    pub(super) fn text_at(&self, at: &Span, text: &str) -> Result<String, ConfigError> {
        interpolate(text, self.environment).map_err(|what| self.error(at, what))
    }

    /// The checked value of a text. Errors show it as it is written, before values are put in.
    pub(super) fn parse<T>(
        &self,
        written: &Text,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Result<T, ConfigError> {
        parse(&self.text(written)?).map_err(|wrong| {
            let shown = written.get_ref();
            let of = if is_interpolated(shown) {
                "the value of "
            } else {
                ""
            };
            self.error(&written.span(), format!("{of}{shown:?} {wrong}"))
        })
    }

    /// The same for a text that may hold a secret: errors don't show it at all.
    pub(super) fn parse_hidden<T>(
        &self,
        written: &Text,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Result<T, ConfigError> {
        parse(&self.text(written)?).map_err(|wrong| self.error(&written.span(), wrong))
    }

    /// The checked value of an optional text.
    pub(super) fn parse_or<T>(
        &self,
        written: Option<&Text>,
        default: &str,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Result<T, ConfigError> {
        match written {
            Some(written) => self.parse(written, parse),
            None => Ok(parse_default(default, parse)),
        }
    }

    /// The checked values of an optional list of texts.
    pub(super) fn parse_list_or<T>(
        &self,
        written: Option<&Texts>,
        default: &[&str],
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Result<Vec<T>, ConfigError> {
        match written {
            Some(list) => list
                .get_ref()
                .iter()
                .map(|written| self.parse(written, &parse))
                .collect(),
            None => Ok(default
                .iter()
                .map(|default| parse_default(default, &parse))
                .collect()),
        }
    }

    /// A whole number in `range`, or one that the environment brings.
    pub(super) fn number_or<T>(
        &self,
        written: Option<&Scalar>,
        default: T,
        range: RangeInclusive<T>,
    ) -> Result<T, ConfigError>
    where
        T: TryFrom<i64> + PartialOrd + Display,
    {
        let Some(written) = written else {
            return Ok(default);
        };
        let expected = || {
            format!(
                "expected a whole number from {} to {}",
                range.start(),
                range.end()
            )
        };
        let number = match written.get_ref() {
            ScalarValue::Integer(number) => *number,
            ScalarValue::Flag(_) => {
                let what = format!("is true or false; {}", expected());
                return Err(self.error(&written.span(), what));
            }
            ScalarValue::Text(text) => {
                let text = self.scalar_text(written, text, &expected())?;
                text.replace('_', "").parse().map_err(|_| {
                    let what = format!("its value is no whole number; {}", expected());
                    self.error(&written.span(), what)
                })?
            }
        };
        T::try_from(number)
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.error(&written.span(), format!("is out of range; {}", expected())))
    }

    /// True or false, or what the environment brings.
    pub(super) fn flag_or(
        &self,
        written: Option<&Scalar>,
        default: bool,
    ) -> Result<bool, ConfigError> {
        let Some(written) = written else {
            return Ok(default);
        };
        const EXPECTED: &str = "expected true or false, without quotes";
        match written.get_ref() {
            ScalarValue::Flag(flag) => Ok(*flag),
            ScalarValue::Integer(_) => {
                Err(self.error(&written.span(), format!("is a number; {EXPECTED}")))
            }
            ScalarValue::Text(text) => match self.scalar_text(written, text, EXPECTED)?.as_str() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(self.error(
                    &written.span(),
                    "its value is neither true nor false; expected one of them",
                )),
            },
        }
    }

    /// A string is a number or a flag only if the environment brings it: `"8"` is a slip.
    fn scalar_text(
        &self,
        written: &Scalar,
        text: &str,
        expected: &str,
    ) -> Result<String, ConfigError> {
        if is_interpolated(text) {
            self.text_at(&written.span(), text)
        } else {
            Err(self.error(&written.span(), format!("{text:?} is a string; {expected}")))
        }
    }

    fn line(&self, at: &Span) -> usize {
        let before = &self.text.as_bytes()[..at.start.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn key(&self, at: &Span) -> &str {
        self.keys.get(at).map_or("", String::as_str)
    }

    /// What serde says of unknown, missing and mistyped keys, in the words of this file. Its own
    /// words quote values, which may be secret.
    fn structure_error(&self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().unwrap_or_default();
        let message = error.message();
        if let Some(rest) = message.strip_prefix("unknown field ") {
            let mut names = rest.split('`').skip(1).step_by(2);
            let unknown = names.next().unwrap_or_default();
            let known = names.collect::<Vec<_>>();
            let nearest = nearest(unknown, &known).unwrap_or_default();
            return self.error(
                &at,
                format!("is an unknown key; the nearest known one is {nearest:?}"),
            );
        }
        if let Some(rest) = message.strip_prefix("missing field ") {
            return self.missing(&at, rest.trim_matches('`'), "is missing; it has no default");
        }
        let (found, expected) = message
            .strip_prefix("invalid type: ")
            .and_then(|rest| rest.rsplit_once(", expected "))
            // The other message is of a list's length, where a table is expected.
            .unwrap_or(("sequence", "a map"));
        let found = match found.split([' ', '`']).next().unwrap_or_default() {
            "sequence" => "a list",
            "map" => "a table or a date",
            "string" => "a string",
            "integer" => "a whole number",
            "floating" => "a number with a fraction",
            "boolean" => "true or false",
            _ => "of another type",
        };
        let expected = match expected {
            "a sequence" => "a list",
            "a map" => "a table",
            "a string" if found.starts_with("a table") => {
                "a string (and a key with a dot in it is written in quotes)"
            }
            struct_name if struct_name.starts_with("struct ") => "a table",
            other => other,
        };
        self.error(&at, format!("is {found}; expected {expected}"))
    }
}

/// That a default is right is tested with each file that leaves it out.
fn parse_default<T>(default: &str, parse: impl Fn(&str) -> Result<T, Wrong>) -> T {
    parse(default).unwrap_or_else(|wrong| unreachable!("the default {default:?} {wrong}"))
}

fn note_keys(table: &DeTable<'_>, parent: &str, keys: &mut HashMap<Span, String>) {
    for (name, value) in table {
        let key = match parent {
            "" => name.get_ref().to_string(),
            parent => format!("{parent}.{}", name.get_ref()),
        };
        keys.insert(name.span(), key.clone());
        note_value(value, &key, keys);
    }
}

fn note_value(value: &Spanned<DeValue<'_>>, key: &str, keys: &mut HashMap<Span, String>) {
    keys.insert(value.span(), key.to_owned());
    match value.get_ref() {
        DeValue::Table(table) => note_keys(table, key, keys),
        DeValue::Array(values) => values.iter().for_each(|value| note_value(value, key, keys)),
        DeValue::String(_)
        | DeValue::Integer(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_) => {}
    }
}
