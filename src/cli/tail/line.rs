//! A frame as one line for people.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;

/// What a message is called that is no frame of the protocol: routes may send other formats.
const TEXT: &str = "text";
/// Shown bare and in this order; other fields with their names, `data` last.
const COLUMNS: [&str; 5] = ["reason", "state", "stream", "id", "cursor"];

/// A message, taken apart as far as showing it needs.
pub(super) struct Frame<'a> {
    text: &'a str,
    kind: String,
    fields: BTreeMap<String, &'a RawValue>,
}

impl<'a> Frame<'a> {
    /// Never fails: what is no frame is text.
    pub(super) fn parse(text: &'a str) -> Self {
        let mut fields: BTreeMap<String, &RawValue> =
            serde_json::from_str(text).unwrap_or_default();
        let kind = fields.remove("type").and_then(string);
        if kind.is_none() {
            fields.clear();
        }
        Self {
            text,
            kind: kind.unwrap_or_else(|| TEXT.to_owned()),
            fields,
        }
    }

    pub(super) fn kind(&self) -> &str {
        &self.kind
    }

    pub(super) fn cursor(&self) -> Option<String> {
        string(self.fields.get("cursor")?)
    }

    /// What a goaway frame says about coming back.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        let field = self.fields.get("retry_after_ms")?;
        field.get().parse().ok().map(Duration::from_millis)
    }

    /// `12:00:01.123  event     job:1:updates  1700-0  {"progress":40}`; times are UTC.
    pub(super) fn line(&self, now: SystemTime) -> String {
        let time = humantime::format_rfc3339_millis(now).to_string();
        // Of `2026-11-24T12:00:01.123Z`, the time alone.
        let time = time.get(11..23).unwrap_or(&time);
        let mut line = format!("{time}  {:<8}", self.kind);
        if self.kind == TEXT && self.fields.is_empty() {
            let _ = write!(line, "  {}", without_controls(self.text));
            return line;
        }
        for name in COLUMNS {
            // The cursor of an event says no more than its id, on most routes.
            let is_told = name == "cursor" && self.fields.contains_key("id");
            if let Some(value) = self.fields.get(name).filter(|_| !is_told) {
                let _ = write!(line, "  {}", plain(value));
            }
        }
        for (name, value) in &self.fields {
            if name != "data" && !COLUMNS.contains(&name.as_str()) {
                let _ = write!(line, "  {name}={}", plain(value));
            }
        }
        if let Some(data) = self.fields.get("data") {
            let _ = write!(line, "  {}", without_controls(data.get()));
        }
        line
    }
}

fn string(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// A string without its quotes, anything else as JSON.
fn plain(value: &RawValue) -> String {
    let text = string(value).unwrap_or_else(|| value.get().to_owned());
    without_controls(&text).into_owned()
}

/// A payload must neither break the line nor move the cursor of the terminal.
fn without_controls(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        return text.replace(char::is_control, " ").into();
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> String {
        let noon = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_521_601_123);
        Frame::parse(text).line(noon)
    }

    #[test]
    fn frames_become_lines() {
        let table = [
            (
                r#"{"type":"event","cursor":"1700-0","stream":"job:1:updates","id":"1700-0","data":{"progress":40}}"#,
                r#"12:00:01.123  event     job:1:updates  1700-0  {"progress":40}"#,
            ),
            (
                r#"{"type":"snapshot","reason":"connect","cursor":"1700-0","data":{"state":"new"}}"#,
                r#"12:00:01.123  snapshot  connect  1700-0  {"state":"new"}"#,
            ),
            (
                r#"{"type":"live","cursor":"1700-0"}"#,
                "12:00:01.123  live      1700-0",
            ),
            (
                r#"{"type":"resync","reason":"trimmed","lost":"1600-0"}"#,
                "12:00:01.123  resync    trimmed  lost=1600-0",
            ),
            (
                r#"{"type":"goaway","reason":"drain","retry_after_ms":250}"#,
                "12:00:01.123  goaway    drain  retry_after_ms=250",
            ),
            (
                r#"{"type":"event","cursor":"1-0","stream":"s","id":"1-0","data":null,"omitted":"too_large"}"#,
                "12:00:01.123  event     s  1-0  omitted=too_large  null",
            ),
            (
                r#"{"progress":40}"#,
                r#"12:00:01.123  text      {"progress":40}"#,
            ),
            ("[1,\n 2]", "12:00:01.123  text      [1,  2]"),
            ("\u{1b}[2Jhello", "12:00:01.123  text       [2Jhello"),
        ];
        for (text, expected) in table {
            assert_eq!(line(text), expected);
        }
    }

    #[test]
    fn the_cursor_is_kept_as_it_came() {
        let cursor = |text| Frame::parse(text).cursor();
        let several = r#"{"type":"live","cursor":"a1b2c3~1-0,2-0"}"#;
        assert_eq!(cursor(several).as_deref(), Some("a1b2c3~1-0,2-0"));
        assert_eq!(cursor(r#"{"type":"pong"}"#), None);
        assert_eq!(cursor(r#"{"cursor":"of the payload"}"#), None);
    }

    #[test]
    fn only_goaway_says_when_to_come_back() {
        let frame = Frame::parse(r#"{"type":"goaway","reason":"drain","retry_after_ms":250}"#);
        assert_eq!(frame.retry_after(), Some(Duration::from_millis(250)));
        assert_eq!(Frame::parse(r#"{"type":"pong"}"#).retry_after(), None);
    }
}
