//! `${NAME}`, `${NAME:-default}`, `${file:/path}` and `$${` in strings of the config.

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
        return file(Path::new(path));
    }
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    if !is_name(name) {
        return Err(format!(
            "`${{{inside}}}` is not understood; expected `${{NAME}}`, `${{NAME:-default}}` or `${{file:/path}}`"
        ));
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
            "the environment variable {name} is not set (as text), and `${{{name}}}` has no default"
        )),
    }
}

/// The content without its last newline.
fn file(path: &Path) -> Result<String, String> {
    let mut content = std::fs::read_to_string(path)
        .map_err(|error| format!("the file {} can't be read: {error}", path.display()))?;
    if content.ends_with('\n') {
        content.pop();
        if content.ends_with('\r') {
            content.pop();
        }
    }
    Ok(content)
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
