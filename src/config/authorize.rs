//! `authorize`: a CEL expression, compiled, whose variables exist.

use cel::IdedExpr;
use cel::common::ast::{EntryExpr, Expr, IdedEntryExpr};

use hyper::header::HeaderName;

use super::value::Wrong;

/// A compiled CEL expression that says who may read a route.
pub struct Authorize {
    /// As it is written.
    pub source: String,
    /// Compiled; it refers to no variables but `claims`, `path`, `query`, `headers` and `origin`.
    pub program: cel::Program,
    /// The headers that `headers` has, where the request has them.
    pub headers: Vec<HeaderName>,
}

impl std::fmt::Debug for Authorize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Authorize").field(&self.source).finish()
    }
}

const VARIABLES: [&str; 5] = ["claims", "path", "query", "headers", "origin"];

/// What CEL calls its types in expressions: `type(claims.role) == string`.
const TYPES: [&str; 10] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
];

impl Authorize {
    /// Compiles the expression, and refuses variables that will never exist.
    pub(super) fn compile(source: &str, headers: Vec<HeaderName>) -> Result<Self, Wrong> {
        let program = cel::Program::compile(source).map_err(|errors| {
            let first = errors.errors.first();
            let what = first.map_or("it can't be parsed", |error| error.msg.as_str());
            // After that comes a list of all tokens of the grammar.
            let what = what.split(" expecting {").next().unwrap_or_default();
            let column = first.map_or(0, |error| error.pos.1);
            Wrong::new(format!(
                "is not CEL (column {column}: {what}); expected an expression over claims, path, query, headers and origin"
            ))
        })?;
        if let Some(unknown) = unknown_variable(program.expression(), &mut Vec::new()) {
            return Err(Wrong::new(format!(
                "uses the variable {unknown:?}, which is unknown; expected claims, path, query, headers or origin"
            )));
        }
        if headers.is_empty() && program.references().has_variable("headers") {
            return Err(Wrong::new(
                "uses headers, of which none is listed; expected their names in `authorize_headers`",
            ));
        }
        Ok(Self {
            source: source.to_owned(),
            program,
            headers,
        })
    }
}

/// The first variable that is neither one of ours nor bound by a macro around it, such as the
/// `r` of `claims.roles.exists(r, r == 'admin')`.
fn unknown_variable<'e>(expression: &'e IdedExpr, bound: &mut Vec<&'e str>) -> Option<&'e str> {
    match &expression.expr {
        Expr::Unspecified | Expr::Literal(_) => None,
        Expr::Ident(name) => {
            let name = name.as_str();
            let is_known = VARIABLES.contains(&name) || TYPES.contains(&name);
            (!is_known && !bound.contains(&name)).then_some(name)
        }
        Expr::Select(select) => unknown_variable(&select.operand, bound),
        Expr::Call(call) => call
            .target
            .iter()
            .map(AsRef::as_ref)
            .chain(&call.args)
            .find_map(|part| unknown_variable(part, bound)),
        Expr::List(list) => list
            .elements
            .iter()
            .find_map(|element| unknown_variable(element, bound)),
        Expr::Map(map) => unknown_in_entries(&map.entries, bound),
        Expr::Struct(fields) => unknown_in_entries(&fields.entries, bound),
        Expr::Comprehension(over) => {
            let outside = [&over.iter_range, &over.accu_init];
            if let Some(unknown) = outside
                .into_iter()
                .find_map(|part| unknown_variable(part, bound))
            {
                return Some(unknown);
            }
            let outer = bound.len();
            bound.extend([over.iter_var.as_str(), over.accu_var.as_str()]);
            bound.extend(over.iter_var2.as_deref());
            let inside = [&over.loop_cond, &over.loop_step, &over.result];
            let unknown = inside
                .into_iter()
                .find_map(|part| unknown_variable(part, bound));
            bound.truncate(outer);
            unknown
        }
    }
}

fn unknown_in_entries<'e>(
    entries: &'e [IdedEntryExpr],
    bound: &mut Vec<&'e str>,
) -> Option<&'e str> {
    entries.iter().find_map(|entry| match &entry.expr {
        EntryExpr::StructField(field) => unknown_variable(&field.value, bound),
        EntryExpr::MapEntry(entry) => {
            unknown_variable(&entry.key, bound).or_else(|| unknown_variable(&entry.value, bound))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_over_claims_path_and_query_compile() {
        for expression in [
            "true",
            "has(claims.role) && claims.role == 'admin' || path.job_id in claims.jobs",
            "claims['https://example.com/roles'].exists(r, r == path.role)",
            "claims.a.all(x, claims.b.exists(y, x == y)) && size(query) == 0",
            "{'a': claims.sub}['a'] in [path.user, query.user]",
            "type(claims.level) == int && int(path.level) <= claims.level",
            "claims.sub.startsWith(path.tenant + '-')",
            "origin == 'https://app.example.com'",
        ] {
            assert!(
                Authorize::compile(expression, Vec::new()).is_ok(),
                "{expression}"
            );
        }
    }

    #[test]
    fn unknown_variables_are_found_wherever_they_are() {
        for expression in [
            "user == claims.sub",
            "claims.sub == user.name",
            "has(user.name)",
            "claims.roles.exists(r, r == user)",
            "user.exists(r, r == claims.sub)",
            "claims.a.exists(r, true) && r == 1",
            "{'a': user}['a'] == 1",
            "[user][0] == 1",
            "size(user) == 0",
            "claims.sub.startsWith(user)",
            "claims[user] == 1",
        ] {
            let error = Authorize::compile(expression, Vec::new())
                .unwrap_err()
                .to_string();
            assert!(error.contains("which is unknown"), "{expression}: {error}");
        }
    }
}
