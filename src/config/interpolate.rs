//! `${NAME}`, `${NAME:-default}`, `${file:/path}` and `$${` in strings of the config.

use std::io;
use std::path::{Path, PathBuf};

/// Puts values in. What is put in is not looked at again, and a `$` without `{` is a `$`.
pub(super) fn interpolate(
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<String, String> {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if let Some(before) = rest[..at].strip_suffix('$') {
            result.push_str(before);
            result.push_str("${");
            rest = &rest[at + 2..];
            continue;
        }
        result.push_str(&rest[..at]);
        let Some((inside, after)) = rest[at + 2..].split_once('}') else {
            return Err("a `${` has no `}`; a literal one is written `$${`".to_owned());
        };
        result.push_str(&resolve(inside, environment)?);
        rest = after;
    }
    result.push_str(rest);
    Ok(result)
}

/// Whether anything would be put in.
pub(super) fn is_interpolated(text: &str) -> bool {
    text.replace("$${", "").contains("${")
}

/// The file, if the value is one `${file:…}` as a whole.
pub(super) fn whole_file(text: &str) -> Option<PathBuf> {
    let path = text.strip_prefix("${file:")?.strip_suffix('}')?;
    (!path.contains('}')).then(|| PathBuf::from(path))
}

fn resolve(inside: &str, environment: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    if let Some(path) = inside.strip_prefix("file:") {
        return read_file(Path::new(path))
            .map_err(|error| format!("the file {path} can't be read: {error}"));
    }
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if !is_name(name) {
        // It is not shown: it may be a part of a password that just looks so.
        return Err("a `${…}` is not understood; expected `${NAME}`, `${NAME:-default}` or `${file:/path}`, and `$${` for a literal one".to_owned());
    }
    match (environment(name), default) {
        (_, Some(default)) if default.contains("${") => Err(format!(
            "the default of `${{{name}:-…}}` can't hold another `${{`"
        )),
        // As in a shell, a default also stands in for an empty variable.
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!(
            "the environment variable {name} is not set, and `${{{name}}}` has no default"
        )),
    }
}

/// The content of a file without its last newline.
fn read_file(path: &Path) -> io::Result<String> {
    let content = std::fs::read_to_string(path)?;
    Ok(without_newline(&content).to_owned())
}

/// A file's content without its last newline.
pub(super) fn without_newline(content: &str) -> &str {
    match content.strip_suffix('\n') {
        Some(line) => line.strip_suffix('\r').unwrap_or(line),
        None => content,
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "NAME" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            "AGAIN" => Some("${NAME} $${ }".to_owned()),
            _ => None,
        }
    }

    fn put_in(text: &str) -> Result<String, String> {
        interpolate(text, &environment)
    }

    #[test]
    fn values_are_put_in() {
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("${NAME}", "value"),
            ("a${NAME}b${NAME}c", "avaluebvaluec"),
            ("${NAME:-other}", "value"),
            ("${NONE:-other}", "other"),
            ("${NONE:-}", ""),
            ("${NONE:-redis://h:1/0}", "redis://h:1/0"),
            ("${EMPTY}", ""),
            ("${EMPTY:-other}", "other"),
            ("${AGAIN}", "${NAME} $${ }"),
            ("$${NAME}", "${NAME}"),
            ("$$${NAME}", "$${NAME}"),
            ("$${${NAME}}", "${value}"),
            ("$NAME $ {NAME} }", "$NAME $ {NAME} }"),
            ("é${NAME}é", "évalueé"),
        ] {
            assert_eq!(put_in(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(put_in("a ${NONE}").unwrap_err().contains("NONE is not set"));
        let error = put_in("${file:/no/such/file}").unwrap_err();
        assert!(error.contains("/no/such/file can't be read"), "{error}");
        for text in [
            "${NAME",
            "${",
            "${}",
            "${A B}",
            "${1A}",
            "${:-x}",
            "${A:-${B}}",
            "${A-b}",
        ] {
            assert!(put_in(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_put_in_without_its_last_newline() {
        for (content, expected) in [
            ("secret", "secret"),
            ("secret\n", "secret"),
            ("secret\r\n", "secret"),
            ("a\n\n", "a\n"),
            ("${NAME}\n", "${NAME}"),
            ("", ""),
        ] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            let text = format!("<${{file:{}}}>", file.path().display());
            assert_eq!(
                put_in(&text).unwrap(),
                format!("<{expected}>"),
                "{content:?}"
            );
        }
        let mut binary = tempfile::NamedTempFile::new().unwrap();
        binary.write_all(&[0xff, 0xfe]).unwrap();
        assert!(put_in(&format!("${{file:{}}}", binary.path().display())).is_err());
    }

    #[test]
    fn only_a_whole_value_is_one_file() {
        assert_eq!(whole_file("${file:/a b}"), Some(PathBuf::from("/a b")));
        for text in [
            "${file:/a}x",
            "x${file:/a}",
            "${file:/a}${file:/b}",
            "${NAME}",
            "/a",
        ] {
            assert_eq!(whole_file(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_it(text in "[${}:A-C\\-/]{0,16}|.*") {
            let found = interpolate(&text, &|_| None);
            if !is_interpolated(&text) {
                prop_assert_eq!(found, Ok(text.replace("$${", "${")));
            }
        }

        #[test]
        fn any_value_is_put_in_as_it_is(value in ".*", before in "[a-z}]*", after in "[a-z$}]*") {
            let text = format!("{before}${{X}}{after}");
            let found = interpolate(&text, &|_| Some(value.clone()));
            prop_assert_eq!(found, Ok(format!("{before}{value}{after}")));
        }
    }
}
