//! Texts with `{param}`, `{query.x}` and `{claims.sub}` in them, compiled and checked at start.
//! A literal brace is written twice: `{{` or `}}`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use hyper::header::HeaderValue;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

/// The values of one request that a template may use.
#[derive(Debug, Default, Clone)]
pub struct Values {
    /// Path parameters by name (`job_id`) and query variables (`query.x`): checked against the
    /// route's patterns already.
    pub params: BTreeMap<String, String>,
    /// The verified claims; empty on a public route.
    pub claims: Map<String, Value>,
}

/// What a template may refer to.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// Parameters of the route's path.
    pub params: &'a [String],
    /// Whether there are claims: not on a public route.
    pub claims: bool,
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
    /// Without `claims.`.
    Claim(String),
}

/// Why a text is no template, to be read after the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{job_id`
    #[error("has a `{{` without its `}}`; a literal brace is written twice")]
    Unclosed,
    /// `job_id}`
    #[error("has a `}}` without its `{{`; a literal brace is written twice")]
    Unopened,
    /// `{claims.sub}` on a public route.
    #[error("uses `{{{0}}}`, but the route is public: it has no claims")]
    NoClaims(String),
    /// A variable that does not exist here.
    #[error("uses `{{{variable}}}`, which is unknown; expected {known}")]
    Unknown {
        /// As it is written.
        variable: String,
        /// What could be written.
        known: String,
    },
}

/// A value that a template needs can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// Absent, empty, over 256 bytes, of another type than string or integer, or with forbidden
    /// characters.
    #[error("claim {0:?} is unusable")]
    Claim(String),
    /// A query variable that is absent, or a parameter that would change the meaning of a url or
    /// a header.
    #[error("parameter {0:?} is missing or unusable")]
    Param(String),
}

/// What RFC 3986 calls unreserved stays as it is.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

impl Template {
    /// Parses the text, and refuses variables that are not known.
    pub fn compile(text: &str, known: &Known<'_>) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
            } else if brace == "{" {
                let (variable, after) = rest.split_once('}').ok_or(TemplateError::Unclosed)?;
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(Part::variable(variable, known)?);
                rest = after;
            } else {
                return Err(TemplateError::Unopened);
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { parts })
    }

    /// The text with values as they are: for stream keys.
    pub fn render(&self, values: &Values) -> Result<String, Unusable> {
        self.parts.iter().map(|part| part.value(values)).collect()
    }

    /// The text with values percent-encoded: for urls. A value can't add a segment, a query or
    /// anything else to it, and can't be the `..` that leads out of its path.
    pub fn render_url(&self, values: &Values) -> Result<String, Unusable> {
        let mut url = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => url.push_str(literal),
                Part::Param(_) | Part::Claim(_) => {
                    url.extend(utf8_percent_encode(&part.value(values)?, ESCAPED));
                }
            }
        }
        let path = url.split('?').next().unwrap_or_default();
        if path.split('/').any(|segment| matches!(segment, "." | "..")) {
            return Err(self.all_dots(values));
        }
        Ok(url)
    }

    /// The text as a header's value, which can't hold controls.
    pub fn render_header(&self, values: &Values) -> Result<HeaderValue, Unusable> {
        for part in &self.parts {
            if HeaderValue::from_bytes(part.value(values)?.as_bytes()).is_err() {
                return Err(part.unusable());
            }
        }
        let text = self.render(values)?;
        HeaderValue::from_bytes(text.as_bytes()).map_err(|_| Unusable::Param(text))
    }

    /// The parameters (`job_id`) and query variables (`query.x`) that it uses.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Param(name) => Some(name.as_str()),
            Part::Literal(_) | Part::Claim(_) => None,
        })
    }

    /// Whether what it renders differs by the client's claims.
    pub fn uses_claims(&self) -> bool {
        self.parts.iter().any(|part| matches!(part, Part::Claim(_)))
    }

    /// What the text begins with, up to its first variable.
    pub(super) fn literal_prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Literal(literal)) => literal,
            _ => "",
        }
    }

    /// Whether it is more than a text.
    pub(super) fn has_variables(&self) -> bool {
        self.parts
            .iter()
            .any(|part| !matches!(part, Part::Literal(_)))
    }

    /// What it could render.
    pub(super) fn sample(&self) -> String {
        let sample = |part: &Part| match part {
            Part::Literal(literal) => literal.clone(),
            Part::Param(_) | Part::Claim(_) => "x".to_owned(),
        };
        self.parts.iter().map(sample).collect()
    }

    /// The variable that a segment of dots comes from.
    fn all_dots(&self, values: &Values) -> Unusable {
        let is_dots = |part: &&Part| {
            !matches!(part, Part::Literal(_))
                && part
                    .value(values)
                    .is_ok_and(|value| value.bytes().all(|byte| byte == b'.'))
        };
        self.parts
            .iter()
            .find(is_dots)
            .map_or_else(|| Unusable::Param(String::new()), Part::unusable)
    }
}

impl Part {
    fn variable(variable: &str, known: &Known<'_>) -> Result<Self, TemplateError> {
        match variable.split_once('.') {
            Some(("claims", claim)) if !claim.is_empty() && known.claims => {
                Ok(Self::Claim(claim.to_owned()))
            }
            Some(("claims", claim)) if !claim.is_empty() => {
                Err(TemplateError::NoClaims(variable.to_owned()))
            }
            Some(("query", name)) if !name.is_empty() => Ok(Self::Param(variable.to_owned())),
            None if known.params.iter().any(|param| param == variable) => {
                Ok(Self::Param(variable.to_owned()))
            }
            _ => Err(TemplateError::Unknown {
                variable: variable.to_owned(),
                known: known.names(),
            }),
        }
    }

    fn value<'v>(&'v self, values: &'v Values) -> Result<Cow<'v, str>, Unusable> {
        match self {
            Self::Literal(literal) => Ok(literal.into()),
            Self::Param(name) => values
                .params
                .get(name)
                .map(Cow::from)
                .ok_or_else(|| self.unusable()),
            Self::Claim(name) => claim(name, &values.claims).ok_or_else(|| self.unusable()),
        }
    }

    fn unusable(&self) -> Unusable {
        match self {
            Self::Claim(name) => Unusable::Claim(name.clone()),
            Self::Param(name) | Self::Literal(name) => Unusable::Param(name.clone()),
        }
    }
}

impl Known<'_> {
    fn names(&self) -> String {
        let params = self.params.iter().map(|param| format!("{{{param}}}"));
        let rest = ["{query.NAME}"].into_iter();
        let claims = self.claims.then_some("{claims.NAME}");
        super::value::any_of(params.chain(rest.chain(claims).map(str::to_owned)))
    }
}

/// A claim that can be part of a stream's key: a string or an integer, 1 to 256 bytes, without
/// anything that separates or is a pattern in Redis.
fn claim<'v>(name: &str, claims: &'v Map<String, Value>) -> Option<Cow<'v, str>> {
    let text = match find(name, claims)? {
        Value::String(text) => Cow::from(text),
        Value::Number(number) if number.is_i64() || number.is_u64() => {
            Cow::from(number.to_string())
        }
        _ => return None,
    };
    let is_forbidden = |c: char| {
        c.is_control() || c.is_whitespace() || matches!(c, '*' | '?' | '[' | ']' | '{' | '}')
    };
    ((1..=256).contains(&text.len()) && !text.contains(is_forbidden)).then_some(text)
}

/// The claim of this very name, dots and all (`https://example.com/tenant`); without one, dots
/// lead into objects: `org.id` is `id` in `org`.
fn find<'v>(name: &str, claims: &'v Map<String, Value>) -> Option<&'v Value> {
    claims.get(name).or_else(|| {
        let (object, rest) = name.split_once('.')?;
        find(rest, claims.get(object)?.as_object()?)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn compile(text: &str) -> Result<Template, TemplateError> {
        let params = ["job_id".to_owned(), "part".to_owned()];
        let known = Known {
            params: &params,
            claims: true,
        };
        Template::compile(text, &known)
    }

    fn values(job_id: &str, claims: Value) -> Values {
        let Value::Object(claims) = claims else {
            panic!("claims are an object");
        };
        let params = [("job_id", job_id), ("query.lang", "en")];
        Values {
            params: params.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            claims,
        }
    }

    fn render(text: &str, claims: Value) -> Result<String, Unusable> {
        compile(text).unwrap().render(&values("42", claims))
    }

    #[test]
    fn values_stand_where_their_names_were() {
        let template = compile("job:{job_id}:{query.lang}:{claims.sub}:{{tag}}").unwrap();
        let rendered = template.render(&values("42", json!({ "sub": "ada" })));
        assert_eq!(rendered.unwrap(), "job:42:en:ada:{tag}");
        assert_eq!(
            template.variables().collect::<Vec<_>>(),
            ["job_id", "query.lang"]
        );
        assert!(template.uses_claims());
        assert_eq!(render("{{{job_id}}}", json!({})).unwrap(), "{42}");
    }

    #[test]
    fn what_is_put_in_is_not_a_template() {
        let rendered = compile("a:{job_id}")
            .unwrap()
            .render(&values("{claims.sub}", json!({ "sub": "ada" })));
        assert_eq!(rendered.unwrap(), "a:{claims.sub}");
    }

    #[test]
    fn unknown_variables_are_refused() {
        for text in [
            "{id}",
            "{claims}",
            "{claims.}",
            "{query.}",
            "{}",
            "{ job_id }",
        ] {
            let error = compile(text).unwrap_err();
            assert!(matches!(error, TemplateError::Unknown { .. }), "{text}");
        }
        assert_eq!(compile("a{job_id"), Err(TemplateError::Unclosed));
        assert_eq!(compile("a}b"), Err(TemplateError::Unopened));
        let public = Known {
            params: &[],
            claims: false,
        };
        assert_eq!(
            Template::compile("{claims.sub}", &public),
            Err(TemplateError::NoClaims("claims.sub".to_owned()))
        );
    }

    #[test]
    fn a_claim_is_a_short_string_or_an_integer() {
        let usable = |claim: Value| render("{claims.c}", json!({ "c": claim }));
        assert_eq!(usable(json!("ada@example.com")).unwrap(), "ada@example.com");
        assert_eq!(usable(json!("é")).unwrap(), "é");
        assert_eq!(usable(json!(-7)).unwrap(), "-7");
        assert_eq!(usable(json!(u64::MAX)).unwrap(), u64::MAX.to_string());
        assert_eq!(usable(json!("x".repeat(256))).unwrap().len(), 256);
        let unusable = [
            json!(""),
            json!("x".repeat(257)),
            json!("é".repeat(129)),
            json!(1.0),
            json!(true),
            json!(null),
            json!(["a"]),
            json!({ "a": "b" }),
        ];
        let characters = " \t\n\0\u{7f}\u{85}\u{a0}\u{2028}*?[]{}".chars();
        let characters = characters.map(|c| json!(format!("a{c}b")));
        for claim in unusable.into_iter().chain(characters) {
            let expected = Err(Unusable::Claim("c".to_owned()));
            assert_eq!(usable(claim.clone()), expected, "{claim}");
        }
        assert_eq!(
            render("{claims.none}", json!({ "c": "a" })),
            Err(Unusable::Claim("none".to_owned()))
        );
    }

    #[test]
    fn dots_lead_into_objects_unless_a_claim_has_this_name() {
        let claims = json!({
            "a": { "b": "nested", "c.d": "half", "e": { "f": "deep" } },
            "https://example.com/org": "literal",
            "x.y": "literal",
            "x": { "y": "nested", "z": 3 },
            "s": "text",
        });
        for (name, expected) in [
            ("a.b", "nested"),
            ("a.c.d", "half"),
            ("a.e.f", "deep"),
            ("https://example.com/org", "literal"),
            ("x.y", "literal"),
            ("x.z", "3"),
        ] {
            let rendered = render(&format!("{{claims.{name}}}"), claims.clone());
            assert_eq!(rendered.unwrap(), expected, "{name}");
        }
        for name in ["a", "a.e", "a.x", "s.t", "a.b.c"] {
            assert!(render(&format!("{{claims.{name}}}"), claims.clone()).is_err());
        }
    }

    #[test]
    fn an_absent_variable_is_unusable() {
        let rendered = compile("{query.x}").unwrap().render(&Values::default());
        assert_eq!(rendered, Err(Unusable::Param("query.x".to_owned())));
    }

    #[test]
    fn a_url_keeps_its_shape() {
        let url = compile("http://api/jobs/{job_id}/state?who={claims.sub}").unwrap();
        let rendered = url.render_url(&values("a/../b?c=1#d %2e&é", json!({ "sub": "a&b=c" })));
        assert_eq!(
            rendered.unwrap(),
            "http://api/jobs/a%2F..%2Fb%3Fc%3D1%23d%20%252e%26%C3%A9/state?who=a%26b%3Dc"
        );
    }

    #[test]
    fn a_url_is_not_led_out_of_its_path() {
        let url = compile("http://api/jobs/{job_id}/state").unwrap();
        for dots in [".", ".."] {
            let rendered = url.render_url(&values(dots, json!({})));
            assert_eq!(rendered, Err(Unusable::Param("job_id".to_owned())));
        }
        let rendered = url.render_url(&values("...", json!({})));
        assert_eq!(rendered.unwrap(), "http://api/jobs/.../state");
        let last = compile("http://api/.{claims.sub}?x").unwrap();
        let rendered = last.render_url(&values("42", json!({ "sub": "." })));
        assert_eq!(rendered, Err(Unusable::Claim("sub".to_owned())));
        let query = compile("http://api/?dots={job_id}/x").unwrap();
        assert!(query.render_url(&values("..", json!({}))).is_ok());
    }

    #[test]
    fn a_header_takes_no_controls() {
        let header = compile("job {job_id}").unwrap();
        let rendered = header.render_header(&values("4 é", json!({}))).unwrap();
        assert_eq!(rendered.as_bytes(), "job 4 é".as_bytes());
        for value in ["a\r\nx-admin: 1", "\0", "\u{7f}"] {
            let rendered = header.render_header(&values(value, json!({})));
            assert_eq!(rendered, Err(Unusable::Param("job_id".to_owned())));
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_compiler(text in "[a-z{}.:]{0,12}|job_id|\\{[a-z.]{0,12}\\}|.*") {
            if let Ok(template) = compile(&text) {
                let values = values("42", json!({ "a": { "b": 1 } }));
                let _unusable_is_fine = (template.render(&values), template.render_url(&values));
            }
        }

        #[test]
        fn doubled_braces_make_any_text_literal(text in ".*") {
            let doubled = text.replace('{', "{{").replace('}', "}}");
            prop_assert_eq!(compile(&doubled).unwrap().render(&Values::default()), Ok(text));
        }

        #[test]
        fn no_value_adds_to_a_url(job_id in ".*") {
            let url = compile("http://api/{job_id}/{part}?q={query.lang}").unwrap();
            let mut values = values(&job_id, json!({}));
            values.params.insert("part".to_owned(), job_id.clone());
            if let Ok(rendered) = url.render_url(&values) {
                let uri = rendered.parse::<hyper::Uri>().unwrap();
                prop_assert_eq!(uri.path().matches('/').count(), 2);
                prop_assert_eq!(uri.query(), Some("q=en"));
                let segment = uri.path().split('/').nth(1).unwrap();
                let decoded = percent_encoding::percent_decode_str(segment);
                prop_assert_eq!(decoded.decode_utf8().unwrap(), job_id);
            } else {
                prop_assert!(job_id == "." || job_id == "..");
            }
        }
    }
}
