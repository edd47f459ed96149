//! Texts that are durations, sizes, addresses or one of a few words.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// What is wrong with a value, to be read after the value: `is no duration; expected …`.
#[derive(Debug)]
pub(super) struct Wrong(String);

impl Wrong {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// No duration is longer: timers must be able to add it to the present.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// `250ms`, `5s`, `10m`, `1h`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    let (number, unit) = number_and_unit(text);
    let milliseconds = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60 * 1000),
        "h" => Some(3600 * 1000),
        _ => None,
    };
    let (Some(milliseconds), Ok(number)) = (milliseconds, number.parse::<u64>()) else {
        return Err(Wrong::new(
            r#"is not a duration; expected a whole number with ms, s, m or h, such as "250ms""#,
        ));
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .filter(|duration| *duration <= LONGEST)
        .ok_or_else(|| Wrong::new(r#"is too long; expected at most "8760h""#))
}

/// A duration that can't be zero.
pub(super) fn positive_duration(text: &str) -> Result<Duration, Wrong> {
    let duration = duration(text)?;
    if duration.is_zero() {
        return Err(Wrong::new(r#"is zero; expected at least "1ms""#));
    }
    Ok(duration)
}

/// `512B`, `64KiB`, `1MiB`, `2GiB`: bytes.
pub(super) fn size(text: &str) -> Result<usize, Wrong> {
    let (number, unit) = number_and_unit(text);
    let bytes = match unit {
        "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let (Some(bytes), Ok(number)) = (bytes, number.parse::<usize>()) else {
        return Err(Wrong::new(
            r#"is not a size; expected a whole number with B, KiB, MiB or GiB, such as "64KiB""#,
        ));
    };
    number
        .checked_mul(bytes)
        // What the kernel and Redis count in.
        .filter(|size| i64::try_from(*size).is_ok())
        .ok_or_else(|| Wrong::new("is too large; expected less than 8 EiB"))
}

/// A size of at least `smallest` bytes, which is shown as it is written here.
pub(super) fn size_from(smallest: &'static str) -> impl Fn(&str) -> Result<usize, Wrong> {
    move |text| {
        let bytes = size(text)?;
        if bytes < size(smallest)? {
            return Err(Wrong::new(format!(
                "is too small; expected at least {smallest:?}"
            )));
        }
        Ok(bytes)
    }
}

/// One of a few words, each with its meaning.
pub(super) fn one_of<T: Copy>(words: &[(&str, T)]) -> impl Fn(&str) -> Result<T, Wrong> {
    move |text| {
        words
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, meaning)| *meaning)
            .ok_or_else(|| {
                let words = words.iter().map(|(word, _)| format!("{word:?}"));
                Wrong::new(format!("is unknown; expected {}", any_of(words)))
            })
    }
}

/// An IP address and a port to listen on.
pub(super) fn address(text: &str) -> Result<SocketAddr, Wrong> {
    text.parse().map_err(|_| {
        Wrong::new(
            r#"is not an address; expected an IP address and a port, such as "0.0.0.0:8081""#,
        )
    })
}

/// Any text but an empty one.
pub(super) fn not_empty(text: &str) -> Result<String, Wrong> {
    if text.is_empty() {
        return Err(Wrong::new("is empty; expected a text"));
    }
    Ok(text.to_owned())
}

/// Any text.
pub(super) fn any(text: &str) -> Result<String, Wrong> {
    Ok(text.to_owned())
}

/// The known name that looks most like this one.
pub(super) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let distance = |other: &&&str| strsim::damerau_levenshtein(name, other);
    known.iter().min_by_key(distance).copied()
}

/// `a, b or c`.
pub(super) fn any_of(items: impl IntoIterator<Item = String>) -> String {
    let items = items.into_iter().collect::<Vec<_>>();
    match items.as_slice() {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        items => items.join(""),
    }
}

fn number_and_unit(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_numbers_with_a_unit() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("5s", 5_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("0s", 0),
            ("007s", 7_000),
            ("8760h", 31_536_000_000),
        ] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(milliseconds));
        }
        for text in [
            "", "5", "s", "5 s", " 5s", "5s ", "-5s", "+5s", "1_0s", "5S", "1m30s", "5d",
        ] {
            assert!(duration(text).is_err(), "{text:?}");
        }
        assert!(duration("8761h").is_err());
        assert!(positive_duration("0ms").is_err());
    }

    #[test]
    fn sizes_are_numbers_with_a_unit() {
        for (text, bytes) in [
            ("512B", 512),
            ("64KiB", 65_536),
            ("1MiB", 1_048_576),
            ("2GiB", 2_147_483_648),
            ("0B", 0),
        ] {
            assert_eq!(size(text).unwrap(), bytes);
        }
        for text in ["", "1", "1KB", "1kib", "1.5MiB", "-1B", "1 MiB", "KiB"] {
            assert!(size(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["listen", "admin_listen", "max_connections"];
        assert_eq!(nearest("lisen", &known), Some("listen"));
        assert_eq!(nearest("maxconnections", &known), Some("max_connections"));
        assert_eq!(nearest("x", &[]), None);
    }

    proptest! {
        #[test]
        fn no_text_breaks_them(text in "[0-9]{0,25}(ms|s|m|h|B|KiB|MiB|GiB)?|.*") {
            if let Ok(duration) = duration(&text) {
                prop_assert!(duration <= LONGEST);
            }
            if let Ok(size) = size(&text) {
                prop_assert!(i64::try_from(size).is_ok());
            }
        }

        #[test]
        fn any_number_of_seconds_is_understood(seconds in 0_u64..=31_536_000) {
            let expected = Duration::from_secs(seconds);
            prop_assert_eq!(duration(&format!("{seconds}s")).unwrap(), expected);
        }
    }
}
