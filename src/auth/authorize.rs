//! The route's `authorize` expression, in CEL.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use cel::{Context, Env, ExecutionError, Value};
use hyper::HeaderMap;
use hyper::header::{HeaderName, ORIGIN};
use serde_json::{Map, Value as Json};
use tracing::warn;

use super::Request;
use crate::config::{Authorize, Route};
use crate::throttle::Throttle;

/// How often an expression that fails is complained about, per route.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Evaluates `authorize` expressions.
pub(super) struct Authorizer {
    env: Arc<Env>,
    /// For each route that has an expression.
    complaints: BTreeMap<String, Throttle>,
}

impl Authorizer {
    pub(super) fn new(routes: &[Route]) -> Self {
        let with_expression = routes.iter().filter(|route| route.authorize.is_some());
        Self {
            env: Arc::new(Env::stdlib()),
            complaints: with_expression
                .map(|route| (route.name.clone(), Throttle::new(COMPLAIN_EVERY)))
                .collect(),
        }
    }

    /// Whether the route's expression says yes, where it has one. Anything but `true` is a no;
    /// anything but `true` and `false` is a mistake in the config that is worth a warning.
    pub(super) fn allows(
        &self,
        route: &Route,
        claims: &Map<String, Json>,
        request: &Request<'_>,
    ) -> bool {
        let Some(authorize) = &route.authorize else {
            return true;
        };
        self.evaluate(authorize, claims, request)
            .unwrap_or_else(|problem| {
                self.complain(route, problem);
                false
            })
    }

    pub(super) fn evaluate(
        &self,
        authorize: &Authorize,
        claims: &Map<String, Json>,
        request: &Request<'_>,
    ) -> Result<bool, &'static str> {
        let path = request.params.iter();
        let path = path.filter(|(name, _)| !name.starts_with("query."));
        let mut context = Context::with_env(self.env.clone());
        context.add_variable_from_value("claims", object(claims));
        context.add_variable_from_value("path", strings(path));
        context.add_variable_from_value("query", strings(request.query.iter()));
        context.add_variable_from_value("headers", headers(&authorize.headers, request.headers));
        let origin = joined(request.headers, &ORIGIN);
        context.add_variable_from_value("origin", origin.unwrap_or_default());
        match authorize.program.execute(&context) {
            Ok(Value::Bool(allowed)) => Ok(allowed),
            Ok(_) => Err("the result is no bool"),
            Err(error) => Err(kind(&error)),
        }
    }

    /// Says what kind of problem it is, and nothing that the client has sent.
    fn complain(&self, route: &Route, problem: &'static str) {
        let throttle = self.complaints.get(&route.name);
        if let Some(left_out) = throttle.and_then(Throttle::pass) {
            warn!(route = %route.name, problem, left_out, "`authorize` can't be evaluated, so the request is refused");
        }
    }
}

/// An `ExecutionError` without the values in it, which are the client's.
fn kind(error: &ExecutionError) -> &'static str {
    match error {
        ExecutionError::NoSuchKey(_) => "no such key: guard it with has()",
        ExecutionError::UndeclaredReference(_) => "unknown function",
        ExecutionError::NoSuchOverload(_)
        | ExecutionError::ValuesNotComparable(..)
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::UnsupportedTargetType { .. }
        | ExecutionError::NotSupportedAsMethod { .. } => "a value of the wrong type",
        ExecutionError::IndexOutOfBounds(_) => "index out of bounds",
        ExecutionError::FunctionError { .. } => "a function failed",
        _ => "the expression failed",
    }
}

/// Those of the named headers that the request has.
fn headers(names: &[HeaderName], headers: &HeaderMap) -> Value {
    let present = names.iter();
    let present = present.filter_map(|name| Some((name.as_str(), joined(headers, name)?)));
    present.collect::<HashMap<&str, String>>().into()
}

/// All lines of a header as one (RFC 9110 section 5.3), so that none can hide behind another.
/// One that is no text is as good as absent.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines = headers.get_all(name).iter();
    let lines = lines.map(|line| std::str::from_utf8(line.as_bytes()));
    let lines: Vec<_> = lines.collect::<Result<_, _>>().ok()?;
    (!lines.is_empty()).then(|| lines.join(", "))
}

fn strings<'a>(pairs: impl Iterator<Item = (&'a String, &'a String)>) -> Value {
    let map: HashMap<&str, &str> = pairs.map(|(k, v)| (k.as_str(), v.as_str())).collect();
    map.into()
}

fn object(members: &Map<String, Json>) -> Value {
    let map: HashMap<&str, Value> = members
        .iter()
        .map(|(name, member)| (name.as_str(), value(member)))
        .collect();
    map.into()
}

/// JSON as CEL has it. Integers are `int` where they fit, or `claims.level + 1` would have no
/// overload.
fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(bool) => Value::Bool(*bool),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Value::Int(int),
            (None, Some(uint)) => Value::UInt(uint),
            (None, None) => number.as_f64().map_or(Value::Null, Value::Float),
        },
        Json::String(text) => text.as_str().into(),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(value).collect())),
        Json::Object(members) => object(members),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::route_with;
    use super::*;

    fn evaluate(source: &str) -> Result<bool, &'static str> {
        let claims = json!({
            "sub": "alice",
            "role": "editor",
            "jobs": ["1", "42"],
            "level": 3,
            "debt": -1,
            "huge": u64::MAX,
            "share": 0.5,
            "nothing": null,
            "org": {"id": 7, "admin": true},
        });
        let params = [("job_id", "42"), ("query.tenant", "acme")];
        let query = [("tenant", "acme"), ("debug", "1")];
        let owned = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("x-tenant", "acme"),
            ("x-many", "a"),
            ("x-many", "b"),
            ("x-secret", "not listed"),
            ("origin", "https://app.example.com"),
        ] {
            headers.append(name, hyper::header::HeaderValue::from_static(value));
        }
        let request = Request {
            message: None,
            headers: &headers,
            params: &owned(&params),
            query: &owned(&query),
        };
        let source = json!(source);
        let route = route_with(&format!(
            "authorize = {source}\nauthorize_headers = ['x-tenant', 'X-Other', 'x-many']"
        ));
        let authorize = route.authorize.as_ref().unwrap();
        Authorizer::new(&[]).evaluate(authorize, claims.as_object().unwrap(), &request)
    }

    #[test]
    fn expressions_see_claims_path_and_query() {
        let cases = [
            ("path.job_id in claims.jobs", Ok(true)),
            ("'7' in claims.jobs", Ok(false)),
            (
                "has(claims.role) && claims.role == 'admin' || path.job_id in claims.jobs",
                Ok(true),
            ),
            ("has(claims.none) && claims.none == 'x'", Ok(false)),
            ("claims.level >= 3 && claims.level + 1 == 4", Ok(true)),
            ("claims.debt < 0 && claims.share < 1.0", Ok(true)),
            ("claims.huge > claims.level", Ok(true)),
            ("claims.nothing == null", Ok(true)),
            ("claims.org.admin && claims.org.id == 7", Ok(true)),
            ("claims.jobs.exists(job, job == path.job_id)", Ok(true)),
            (
                "claims.sub.startsWith('a') && claims.sub.matches('^[a-z]+$')",
                Ok(true),
            ),
            ("query.tenant == 'acme' && query['debug'] == '1'", Ok(true)),
            ("has(query.none)", Ok(false)),
            ("'query.tenant' in path", Ok(false)),
            ("size(path) == 1 && size(claims.jobs) == 2", Ok(true)),
            ("headers['x-tenant'] == query.tenant", Ok(true)),
            ("headers['x-many'] == 'a, b'", Ok(true)),
            ("'x-other' in headers || 'x-secret' in headers", Ok(false)),
            ("size(headers) == 2", Ok(true)),
            ("origin.endsWith('.example.com')", Ok(true)),
            ("false", Ok(false)),
        ];
        for (source, expected) in cases {
            assert_eq!(evaluate(source), expected, "{source}");
        }
    }

    #[test]
    fn what_is_no_bool_is_a_problem_and_says_which() {
        let cases = [
            ("claims.none == 1", "no such key"),
            ("claims[path.job_id]", "no such key"),
            ("nothing(claims.sub)", "unknown function"),
            ("claims.sub > 1", "wrong type"),
            ("claims.sub + 1 == 2", "wrong type"),
            ("claims.jobs[7] == 'x'", "index out of bounds"),
            ("claims.sub", "no bool"),
            ("claims", "no bool"),
            ("null", "no bool"),
            ("'true'", "no bool"),
            ("1", "no bool"),
            ("path.job_id.matches(claims.sub + '(')", "failed"),
            ("1 / 0 == 1", "failed"),
            ("int(claims.sub) == 1", "failed"),
        ];
        for (source, problem) in cases {
            let answer = evaluate(source);
            assert!(
                answer.is_err_and(|text| text.contains(problem)),
                "{source}: {answer:?}"
            );
        }
    }
}
