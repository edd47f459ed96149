//! Why a request would be let in or not, step by step, for people.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::keyring::Opened;
use super::rules::{Claims, expiry, now};
use super::verify::{Header, Verified};
use super::{Authority, Grant, Rejection, Request, TokenFault, Tokens, token};
use crate::config::Route;

/// One step of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, such as `exp`.
    pub what: &'static str,
    /// What was found. May hold claims, never the token.
    pub said: String,
    /// Whether it speaks for the request.
    pub is_good: bool,
}

/// A decision with its steps.
#[derive(Debug)]
pub struct Explained {
    /// In the order in which they were taken. After the first that is not good, those of claims
    /// go on, so that all that is wrong with them is seen.
    pub findings: Vec<Finding>,
    /// What [`Authority::admit`] would have said.
    pub grant: Result<Grant, Rejection>,
}

impl Authority {
    /// Decides as [`Authority::admit`] does, and tells each step. With `given`, that is the
    /// token, wherever it would have been; else it is looked for in the request.
    pub async fn explain(
        &self,
        route: &Route,
        request: &Request<'_>,
        given: Option<&str>,
    ) -> Explained {
        let mut findings = Vec::new();
        let verified = match &self.tokens {
            Some(tokens) if !route.public => tokens.explain(request, given, &mut findings).await,
            Some(_) | None => {
                note(&mut findings, "token", "not asked for: the route is public");
                Ok(Verified::default())
            }
        };
        let verified = match verified {
            Ok(verified) => verified,
            Err(fault) => {
                let grant = Err(fault.into());
                return Explained { findings, grant };
            }
        };
        if let Some(authorize) = &route.authorize {
            let value = self
                .authorizer
                .evaluate(authorize, &verified.claims, request);
            let said = match value {
                Ok(value) => format!("{value}: {}", authorize.source),
                Err(problem) => format!("can't be evaluated ({problem}): {}", authorize.source),
            };
            findings.push(Finding {
                what: "authorize",
                said,
                is_good: value == Ok(true),
            });
        }
        let grant = self.grant(route, verified, request);
        Explained { findings, grant }
    }
}

impl Tokens {
    async fn explain(
        &self,
        request: &Request<'_>,
        given: Option<&str>,
        findings: &mut Vec<Finding>,
    ) -> Result<Verified, TokenFault> {
        let token = match given {
            Some(token) => Ok(token.into()),
            None => token::find(&self.sources, request),
        };
        let token = tell(findings, "token", token)?;
        let header = tell(findings, "token", Header::read(&token))?;
        note(findings, "token", &describe(&header));
        let rules = &self.verifier.rules;
        tell(findings, "typ", rules.check_typ(header.typ.as_deref()))?;
        let opened = self.verifier.keyring.open(&token, &header.clue()).await;
        let Opened { claims, key } = tell(findings, "signature", opened)?;
        let kid = key.kid.as_ref().map(|kid| format!(", kid {kid:?}"));
        let said = format!(
            "by [[auth.key]] {}{}, {:?}",
            key.index + 1,
            kid.unwrap_or_default(),
            header.algorithm
        );
        note(findings, "signature", &said);
        let rulings = rules.judge(&claims, key.index);
        for (what, ruling) in rulings {
            let shown = shown(what, &claims);
            findings.push(Finding {
                what,
                said: match ruling {
                    Ok(()) => shown,
                    Err(fault) => format!("{shown}: {fault}"),
                },
                is_good: ruling.is_ok(),
            });
        }
        rulings.into_iter().try_for_each(|(_, ruling)| ruling)?;
        self.verifier.verified(claims)
    }
}

fn note(findings: &mut Vec<Finding>, what: &'static str, said: &str) {
    findings.push(Finding {
        what,
        said: said.to_owned(),
        is_good: true,
    });
}

/// Notes what is wrong, if anything is.
fn tell<T>(
    findings: &mut Vec<Finding>,
    what: &'static str,
    result: Result<T, TokenFault>,
) -> Result<T, TokenFault> {
    result.inspect_err(|fault| {
        findings.push(Finding {
            what,
            said: fault.to_string(),
            is_good: false,
        });
    })
}

fn describe(header: &Header) -> String {
    let part = |name: &str, value: &Option<String>| match value {
        Some(value) => format!(", {name} {value:?}"),
        None => format!(", no {name}"),
    };
    let (kid, typ) = (part("kid", &header.kid), part("typ", &header.typ));
    format!("{:?}{kid}{typ}", header.algorithm)
}

/// What a rule has looked at.
fn shown(rule: &str, claims: &Claims) -> String {
    match rule {
        "types" => "known claims are of their type".to_owned(),
        "exp" => expiry(claims).map_or("absent".to_owned(), moment),
        "require" => "claims are as `auth.require` wants".to_owned(),
        "subject" => "who it is can be told".to_owned(),
        claim => claims
            .get(claim)
            .map_or("absent".to_owned(), Value::to_string),
    }
}

fn moment(at: Duration) -> String {
    let now = now();
    let whole = |time: Duration| humantime::format_duration(Duration::from_secs(time.as_secs()));
    let distance = match at.checked_sub(now) {
        Some(left) => format!("in {}", whole(left)),
        None => format!("{} ago", whole(now.saturating_sub(at))),
    };
    match UNIX_EPOCH.checked_add(at) {
        Some(time) if at.as_secs() < END_OF_TIME => {
            format!("{} ({distance})", humantime::format_rfc3339_seconds(time))
        }
        Some(_) | None => "beyond the calendar".to_owned(),
    }
}

/// The first second of the year 10000.
const END_OF_TIME: u64 = 253_402_300_800;
