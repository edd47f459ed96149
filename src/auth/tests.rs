//! The matrix of tokens: each refused with its own reason, or accepted.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::FutureExt;
use hyper::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::config::Expiry;
use crate::protocol::outcome::{Outcome, Refusal};

const SECRET: &str = "a test secret of at least 32 bytes";
const OTHER_SECRET: &str = "another test secret of 32 bytes or more";
const RSA_PUBLIC: &[u8] = include_bytes!("../../tests/keys/rsa.pub.pem");

struct Case {
    name: &'static str,
    token: String,
    expected: Result<(), TokenFault>,
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn good(&mut self, name: &'static str, token: String) {
        self.add(name, token, Ok(()));
    }

    fn bad(&mut self, name: &'static str, fault: TokenFault, token: impl Into<String>) {
        self.add(name, token.into(), Err(fault));
    }

    fn add(&mut self, name: &'static str, token: String, expected: Result<(), TokenFault>) {
        self.0.push(Case {
            name,
            token,
            expected,
        });
    }
}

#[test]
fn every_token_is_accepted_or_refused_with_its_reason() {
    let mut cases = Cases::default();
    algorithms(&mut cases);
    forms(&mut cases);
    signatures(&mut cases);
    times(&mut cases);
    claims_of_the_config(&mut cases);
    claim_types(&mut cases);
    let cases = cases.0;
    println!("{} tokens", cases.len());
    let faults: BTreeSet<_> = cases
        .iter()
        .filter_map(|case| case.expected.err())
        .map(TokenFault::reason)
        .collect();
    let mut all: BTreeSet<_> = TokenFault::ALL.iter().map(|f| f.reason()).collect();
    // Those of a JWKS and of `typ` need another config.
    for elsewhere in [
        TokenFault::Missing,
        TokenFault::Typ,
        TokenFault::UnknownKey,
        TokenFault::KidMissing,
        TokenFault::KeysUnavailable,
    ] {
        all.remove(elsewhere.reason());
    }
    assert_eq!(faults, all, "a fault without a case");

    let metrics = Metrics::new();
    let authority = Authority::of(Some(&jwt()), &[], &metrics);
    for case in &cases {
        let before = case.expected.err().map(|fault| rejections(&metrics, fault));
        let answer = admit(&authority, &bearer(&case.token));
        match (answer, case.expected) {
            (Ok(grant), Ok(())) => assert_eq!(grant.subject.as_deref(), Some("alice")),
            (Err(Rejection::Token(fault)), Err(expected)) => {
                assert_eq!(fault, expected, "{}", case.name);
                let counted = rejections(&metrics, fault);
                assert_eq!(Some(counted - 1), before, "{}", case.name);
            }
            (answer, _) => panic!("{}: {answer:?}", case.name),
        }
    }
}

fn algorithms(cases: &mut Cases) {
    use Algorithm::{ES256, ES384, EdDSA, HS256, HS384, HS512};
    use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
    let all = [
        HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA,
    ];
    for algorithm in all {
        cases.good("a good token", sign(algorithm, &claims()));
        let mut token = sign(algorithm, &claims());
        let wrong = sign(algorithm, &with("sub", json!("mallory")));
        let end = wrong.rfind('.').unwrap();
        token.truncate(token.rfind('.').unwrap());
        token.push_str(&wrong[end..]);
        cases.bad("another token's signature", TokenFault::Signature, token);
    }
    let mut header = json!({"alg": "HS256", "typ": "JWT", "kid": "unknown"});
    cases.good(
        "a kid, which config keys have not",
        hmac(&header, SECRET, &claims()),
    );
    header["typ"] = json!("at+jwt");
    cases.good(
        "an access token of RFC 9068",
        hmac(&header, SECRET, &claims()),
    );

    let body = encode(&claims());
    for none in [
        "none", "None", "NONE", "nOnE", "", "HS1", "ES512", "RSA-OAEP", "hs256",
    ] {
        let header = encode(&json!({"alg": none}));
        let signed = hmac(&json!({"alg": none}), SECRET, &claims());
        cases.bad("an algorithm of nobody", TokenFault::Algorithm, signed);
        let unsigned = format!("{header}.{body}.");
        cases.bad("unsigned", TokenFault::Algorithm, unsigned);
    }
    cases.bad(
        "RSA's public key as HMAC secret, where there is an HMAC key",
        TokenFault::Signature,
        sign_with(HS256, &EncodingKey::from_secret(RSA_PUBLIC), &claims()),
    );
}

fn forms(cases: &mut Cases) {
    let good = sign(Algorithm::HS256, &claims());
    let [header, body, signature] = parts(&good);
    let malformed = [
        String::new(),
        " ".to_owned(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        "garbage".to_owned(),
        "a.b.c".to_owned(),
        "undefined".to_owned(),
        "[object Object]".to_owned(),
        format!("{header}.{body}"),
        format!(".{body}.{signature}"),
        format!("{good}."),
        format!("{good}.{signature}"),
        format!("{header}.{body}.{signature}.a.b"),
        format!("{header}=.{body}.{signature}"),
        format!("{header}.{body}.{signature}="),
        format!("{header}.{body}.!"),
        format!("\"{good}\""),
        format!("Bearer {good}"),
        hmac(&json!("HS256"), SECRET, &claims()),
        hmac(&json!(["HS256"]), SECRET, &claims()),
        hmac(&json!({"typ": "JWT"}), SECRET, &claims()),
        hmac(&json!({"alg": 256}), SECRET, &claims()),
        hmac(&json!({"alg": ["HS256"]}), SECRET, &claims()),
        hmac(&json!({"alg": "HS256", "kid": 7}), SECRET, &claims()),
        signed_text("not json"),
        signed_text(&format!("{{\"a\":{}", "[".repeat(2000))),
        signed_text(""),
    ];
    for token in malformed {
        cases.bad("no JWT", TokenFault::Malformed, token);
    }
    for crit in [
        json!(["exp"]),
        json!(["b64"]),
        json!([]),
        json!(null),
        json!("x"),
    ] {
        let header = json!({"alg": "HS256", "crit": crit, "b64": true});
        cases.bad("crit", TokenFault::Crit, hmac(&header, SECRET, &claims()));
    }
    let large = with("padding", json!("x".repeat(9000)));
    cases.bad(
        "large",
        TokenFault::TooLarge,
        sign(Algorithm::HS256, &large),
    );
    cases.bad("large garbage", TokenFault::TooLarge, "x".repeat(9000));
    let fitting = with("padding", json!("x".repeat(5000)));
    cases.good("not too large", sign(Algorithm::HS256, &fitting));
}

fn signatures(cases: &mut Cases) {
    let good = sign(Algorithm::HS256, &claims());
    let [header, body, _] = parts(&good);
    let other = encode(&with("sub", json!("root")));
    let [_, _, signature] = parts(&good);
    cases.bad(
        "no claims",
        TokenFault::Signature,
        format!("{header}..{signature}"),
    );
    cases.bad(
        "no signature",
        TokenFault::Signature,
        format!("{header}.{body}."),
    );
    cases.bad(
        "other claims",
        TokenFault::Signature,
        format!("{header}.{other}.{signature}"),
    );
    let other_header = encode(&json!({"alg": "HS512"}));
    cases.bad(
        "another algorithm of the same key",
        TokenFault::Signature,
        format!("{other_header}.{body}.{signature}"),
    );
    let stranger = hmac(&json!({"alg": "HS256"}), OTHER_SECRET, &claims());
    cases.bad("a stranger's secret", TokenFault::Signature, stranger);
    let empty = hmac(&json!({"alg": "HS256"}), "", &claims());
    cases.bad("an empty secret", TokenFault::Signature, empty);
    let own_key =
        json!({"alg": "HS256", "jwk": {"kty": "oct", "k": "YQ"}, "jku": "https://evil.test"});
    cases.bad(
        "it brings its own key",
        TokenFault::Signature,
        hmac(&own_key, "a", &claims()),
    );
    let expired = hmac(
        &json!({"alg": "HS256"}),
        OTHER_SECRET,
        &with("exp", json!(1)),
    );
    cases.bad(
        "claims of a bad signature don't matter",
        TokenFault::Signature,
        expired,
    );
}

fn times(cases: &mut Cases) {
    let now = now();
    let good = [
        ("expired within leeway", with("exp", json!(now - 20))),
        (
            "exp with a fraction",
            with("exp", json!(600.5 + now as f64)),
        ),
        ("exp in the far future", with("exp", json!(u64::MAX))),
        ("nbf past", with("nbf", json!(now - 20))),
        ("nbf within leeway", with("nbf", json!(now + 20))),
    ];
    for (name, claims) in good {
        cases.good(name, sign(Algorithm::HS256, &claims));
    }
    let bad = [
        ("expired", TokenFault::Expired, with("exp", json!(now - 40))),
        ("expired at 0", TokenFault::Expired, with("exp", json!(0))),
        (
            "expired with a fraction",
            TokenFault::Expired,
            with("exp", json!(1.5)),
        ),
        (
            "not yet",
            TokenFault::NotYetValid,
            with("nbf", json!(now + 60)),
        ),
        (
            "never",
            TokenFault::NotYetValid,
            with("nbf", json!(u64::MAX / 2)),
        ),
        ("no exp", TokenFault::ExpMissing, without("exp")),
    ];
    for (name, fault, claims) in bad {
        cases.bad(name, fault, sign(Algorithm::HS256, &claims));
    }
}

fn claims_of_the_config(cases: &mut Cases) {
    let good = [
        ("the other issuer", with("iss", json!("https://b.test"))),
        ("several audiences", with("aud", json!(["x", "relay"]))),
    ];
    for (name, claims) in good {
        cases.good(name, sign(Algorithm::HS256, &claims));
    }
    let bad = [
        (
            "issuer",
            TokenFault::Issuer,
            with("iss", json!("https://evil.test")),
        ),
        (
            "issuer in part",
            TokenFault::Issuer,
            with("iss", json!("https://a.test/")),
        ),
        (
            "issuer in capitals",
            TokenFault::Issuer,
            with("iss", json!("HTTPS://A.TEST")),
        ),
        ("no issuer", TokenFault::Issuer, without("iss")),
        (
            "audience",
            TokenFault::Audience,
            with("aud", json!("other")),
        ),
        (
            "audiences",
            TokenFault::Audience,
            with("aud", json!(["a", "b"])),
        ),
        (
            "empty audience",
            TokenFault::Audience,
            with("aud", json!("")),
        ),
        (
            "empty audiences",
            TokenFault::Audience,
            with("aud", json!([])),
        ),
        ("no audience", TokenFault::Audience, without("aud")),
        (
            "a refresh token",
            TokenFault::Claim,
            with("type", json!("refresh")),
        ),
        (
            "not the required type",
            TokenFault::Claim,
            with("type", json!(["access"])),
        ),
        (
            "a required claim is null",
            TokenFault::Claim,
            with("type", json!(null)),
        ),
        (
            "a required claim is absent",
            TokenFault::Claim,
            without("type"),
        ),
        (
            "a required number differs",
            TokenFault::Claim,
            with("version", json!(3)),
        ),
        (
            "a required number is text",
            TokenFault::Claim,
            with("version", json!("2")),
        ),
    ];
    for (name, fault, claims) in bad {
        cases.bad(name, fault, sign(Algorithm::HS256, &claims));
    }
}

fn claim_types(cases: &mut Cases) {
    for payload in ["[]", "null", "\"alice\"", r#"{"exp":1,"exp":99999999999}"#] {
        let token = signed_text(payload);
        cases.bad("no object of claims", TokenFault::ClaimType, token);
    }
    let now = now();
    let wrong = [
        ("exp", json!((now + 600).to_string())),
        ("exp", json!(null)),
        ("exp", json!(-1)),
        ("exp", json!(1e300)),
        ("exp", json!(true)),
        ("exp", json!([now + 600])),
        ("nbf", json!("0")),
        ("nbf", json!(null)),
        ("nbf", json!(-5)),
        ("iat", json!("0")),
        ("iat", json!(null)),
        ("iat", json!(-5)),
        ("jti", json!(7)),
        ("iss", json!(42)),
        ("iss", json!(null)),
        ("iss", json!(["https://a.test"])),
        ("iss", json!({"url": "https://a.test"})),
        ("aud", json!({"relay": true})),
        ("aud", json!(7)),
        ("aud", json!(null)),
        ("aud", json!(["relay", 7])),
        ("aud", json!([["relay"]])),
        ("sub", json!(1.5)),
        ("sub", json!(null)),
        ("sub", json!(true)),
        ("sub", json!(["alice"])),
        ("sub", json!({"name": "alice"})),
    ];
    for (name, value) in wrong {
        let token = sign(Algorithm::HS256, &with(name, value));
        cases.bad(name, TokenFault::ClaimType, token);
    }
}

#[test]
fn a_typ_is_a_media_type_in_any_case() {
    let mut jwt = jwt_with_hmac();
    jwt.typ = ["application/at+jwt", "application/jwt"]
        .map(str::to_owned)
        .into();
    let check = |typ: Value| {
        let header = json!({"alg": "HS256", "typ": typ});
        verify(&jwt, &hmac(&header, SECRET, &claims()))
    };
    for typ in [
        "JWT",
        "jwt",
        "at+jwt",
        "AT+JWT",
        "application/at+jwt",
        "Application/JWT",
    ] {
        assert_eq!(check(json!(typ)), Ok(()), "{typ}");
    }
    for typ in [
        "",
        "logout+jwt",
        "id+jwt",
        "text/jwt",
        "application/application/jwt",
        "JWT ",
    ] {
        assert_eq!(check(json!(typ)), Err(TokenFault::Typ), "{typ}");
    }
    let without = hmac(&json!({"alg": "HS256"}), SECRET, &claims());
    assert_eq!(verify(&jwt, &without), Err(TokenFault::Typ));
    assert_eq!(check(json!(7)), Err(TokenFault::Malformed));
    jwt.typ.clear();
    assert_eq!(verify(&jwt, &without), Ok(()));
}

#[test]
fn an_authority_is_shared_by_all_connections() {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Authority>();
}

#[test]
fn a_public_key_is_no_secret() {
    let jwt = jwt_with(RSA_KEY);
    let secret = EncodingKey::from_secret(RSA_PUBLIC);
    let token = sign_with(Algorithm::HS256, &secret, &claims());
    assert_eq!(verify(&jwt, &token), Err(TokenFault::Algorithm));
}

#[test]
fn only_the_algorithms_of_the_key_are_accepted() {
    let mut jwt = jwt_with_hmac();
    jwt.keys[0].algorithms = vec![Algorithm::HS256];
    let token = sign(Algorithm::HS512, &claims());
    assert_eq!(verify(&jwt, &token), Err(TokenFault::Algorithm));
    jwt.keys.clear();
    let token = sign(Algorithm::HS256, &claims());
    assert_eq!(verify(&jwt, &token), Err(TokenFault::Algorithm));
}

#[test]
fn the_key_that_signed_gives_the_reason() {
    let old_key = HMAC_KEY.replace(SECRET, OTHER_SECRET);
    let expired = sign(Algorithm::HS256, &with("exp", json!(1)));
    for keys in [[HMAC_KEY, &old_key], [&old_key, HMAC_KEY]] {
        let jwt = jwt_with(&keys.concat());
        assert_eq!(verify(&jwt, &expired), Err(TokenFault::Expired));
        assert_eq!(verify(&jwt, &sign(Algorithm::HS256, &claims())), Ok(()));
    }
}

#[test]
fn a_key_speaks_for_its_own_issuers_only() {
    let other = HMAC_KEY.replace(SECRET, OTHER_SECRET);
    let jwt = jwt_with(&format!("{HMAC_KEY}issuer = ['https://own.test']\n{other}"));
    let tokens = |issuer: &str| {
        let claims = with("iss", json!(issuer));
        let mine = sign(Algorithm::HS256, &claims);
        (mine, hmac(&json!({"alg": "HS256"}), OTHER_SECRET, &claims))
    };
    let refused = Err(TokenFault::Issuer);
    for (issuer, of_the_first, of_the_second) in [
        ("https://own.test", Ok(()), refused),
        ("https://a.test", refused, Ok(())),
        ("https://b.test", refused, Ok(())),
    ] {
        let (first, second) = tokens(issuer);
        assert_eq!(verify(&jwt, &first), of_the_first, "{issuer}");
        assert_eq!(verify(&jwt, &second), of_the_second, "{issuer}");
    }
}

#[test]
fn what_is_not_configured_is_not_checked() {
    let mut jwt = jwt();
    jwt.keys.iter_mut().for_each(|key| key.issuer.clear());
    jwt.audience.clear();
    jwt.require.clear();
    let mut claims = Map::new();
    claims.insert("exp".to_owned(), json!(now() + 60));
    let bare = sign(Algorithm::HS256, &Value::Object(claims));
    assert_eq!(verify(&jwt, &bare), Ok(()));
    assert_eq!(
        verify(&jwt, &sign(Algorithm::HS256, &with("aud", json!("x")))),
        Ok(())
    );
    for (name, value) in [("iss", json!(1)), ("aud", json!({})), ("sub", json!([]))] {
        let token = sign(Algorithm::HS256, &with(name, value));
        assert_eq!(verify(&jwt, &token), Err(TokenFault::ClaimType), "{name}");
    }
}

#[test]
fn the_subject_is_a_string_or_an_integer() {
    let mut jwt = jwt();
    let subject = |jwt: &Jwt, claims: &Value| {
        let authority = Authority::of(Some(jwt), &[], &Metrics::new());
        admit(&authority, &bearer(&sign(Algorithm::HS256, claims))).map(|grant| grant.subject)
    };
    let is = |text: &str| Ok(Some(text.to_owned()));
    assert_eq!(subject(&jwt, &with("sub", json!(42))), is("42"));
    assert_eq!(
        subject(&jwt, &with("sub", json!(u64::MAX))),
        is("18446744073709551615")
    );
    assert_eq!(subject(&jwt, &without("sub")), Ok(None));
    jwt.subject_claim = "user_id".to_owned();
    assert_eq!(subject(&jwt, &with("user_id", json!(7))), is("7"));
    assert_eq!(subject(&jwt, &claims()), Ok(None));
    let wrong = Err(TokenFault::ClaimType.into());
    assert_eq!(subject(&jwt, &with("user_id", json!([]))), wrong);
    assert_eq!(subject(&jwt, &with("sub", json!([]))), wrong);
}

#[test]
fn a_grant_ends_at_exp_plus_leeway() {
    let mut jwt = jwt();
    let seconds_left = |end: Option<Instant>| {
        end.map(|end| {
            end.saturating_duration_since(Instant::now())
                .as_secs_f64()
                .round()
        })
    };
    let ends = |jwt: &Jwt, exp: u64| {
        let token = bearer(&sign(Algorithm::HS256, &with("exp", json!(exp))));
        let grant = admit(&Authority::of(Some(jwt), &[], &Metrics::new()), &token).unwrap();
        (
            seconds_left(grant.token_expires_at),
            seconds_left(grant.expires_at),
        )
    };
    // `exp` has whole seconds, and up to one of them has passed.
    let (token, socket) = ends(&jwt, now() + 100);
    assert!(matches!(token, Some(99.0..=100.0)), "{token:?}");
    assert!(matches!(socket, Some(129.0..=130.0)), "{socket:?}");
    let (token, socket) = ends(&jwt, now() - 10);
    assert_eq!(token, Some(0.0));
    assert!(matches!(socket, Some(19.0..=20.0)), "{socket:?}");
    assert_eq!(
        ends(&jwt, u64::MAX),
        (None, None),
        "later than the clock can say"
    );

    jwt.expiry = Expiry::Ignore;
    assert_eq!(ends(&jwt, now() + 100), (None, None));
    let expired = sign(Algorithm::HS256, &with("exp", json!(now() - 100)));
    assert_eq!(
        verify(&jwt, &expired),
        Err(TokenFault::Expired),
        "at connect"
    );
}

#[test]
fn public_routes_look_at_no_token() {
    let metrics = Metrics::new();
    let mut public = route(None);
    public.public = true;
    let closed = route(None);
    let cases = [
        (Authority::of(Some(&jwt()), &[], &metrics), &public),
        (Authority::of(None, &[], &metrics), &closed),
    ];
    for (authority, route) in cases {
        for headers in [HeaderMap::new(), bearer("garbage")] {
            let grant = admit_to(&authority, route, &headers).unwrap();
            assert_eq!(grant.subject, None);
            assert!(grant.values.claims.is_empty());
            assert_eq!((grant.expires_at, grant.token_expires_at), (None, None));
        }
        assert_eq!(rejections(&metrics, TokenFault::Malformed), 0);
    }
    let authority = Authority::of(Some(&jwt()), &[], &metrics);
    let answer = admit_to(&authority, &closed, &HeaderMap::new());
    assert_eq!(answer.unwrap_err(), TokenFault::Missing.into());
}

#[test]
fn streams_are_named_after_path_query_and_claims() {
    let route = route_with(
        "streams = ['job:{job_id}', 'user:{claims.sub}:{query.tenant}', 'all', 'n:{claims.version}']",
    );
    let authority = Authority::of(Some(&jwt()), &[], &Metrics::new());
    let admit = |tenant: Option<&str>, claims: &Value| {
        let mut params = BTreeMap::from([("job_id".to_owned(), "42".to_owned())]);
        params.extend(tenant.map(|tenant| ("query.tenant".to_owned(), tenant.to_owned())));
        let request = Request {
            message: None,
            headers: &bearer(&sign(Algorithm::HS256, claims)),
            params: &params,
            query: &BTreeMap::new(),
        };
        let grant = at_once(authority.admit(&route, &request))?;
        let keys = grant.streams.as_slice().iter();
        Ok(keys.map(ToString::to_string).collect::<Vec<_>>())
    };
    let keys = admit(Some("acme"), &claims());
    let expected = ["job:42", "user:alice:acme", "all", "n:2"];
    assert_eq!(keys, Ok(expected.map(str::to_owned).into()));

    let refused = |answer: Result<_, Rejection>| answer.map_err(|rejection| rejection.refusal());
    let missing = Refusal::new(Outcome::BadRequest, "parameter_missing");
    assert_eq!(refused(admit(None, &claims())), Err(missing));
    let unusable = Refusal::new(Outcome::Forbidden, "claim_unusable");
    assert_eq!(refused(admit(Some("acme"), &without("sub"))), Err(unusable));
    for subject in [
        "",
        "*",
        "a b",
        "a\0",
        "a\n",
        "job:[1]",
        "{x}",
        &"x".repeat(257),
    ] {
        let answer = admit(Some("acme"), &with("sub", json!(subject)));
        assert_eq!(refused(answer), Err(unusable), "{subject:?}");
    }
}

#[test]
fn authorize_has_the_last_word() {
    let metrics = Metrics::new();
    let authority = Authority::of(Some(&jwt()), &[], &metrics);
    let answer = |authorize: &str, claims: &Value| {
        let headers = bearer(&sign(Algorithm::HS256, claims));
        admit_to(&authority, &route(Some(authorize)), &headers).map(|_| ())
    };
    let jobs = "path.job_id in claims.jobs";
    let owner = with("jobs", json!(["1", "marked-param"]));
    assert_eq!(answer(jobs, &owner), Ok(()));
    let no = Err(Rejection::NotAllowed);
    assert_eq!(answer(jobs, &with("jobs", json!(["1", "2"]))), no);
    assert_eq!(answer(jobs, &with("jobs", json!("marked-param"))), no);
    assert_eq!(answer(jobs, &claims()), no, "an error is a no");
    assert_eq!(
        answer("claims.sub", &claims()),
        no,
        "and so is what is no bool"
    );
    let expired = with("exp", json!(1));
    assert_eq!(answer("true", &expired), Err(TokenFault::Expired.into()));
    let refusals = TokenFault::ALL
        .iter()
        .map(|fault| rejections(&metrics, *fault));
    assert_eq!(refusals.sum::<u64>(), 1, "only tokens count as such");
}

#[test]
fn every_reason_is_in_the_metrics_from_the_start() {
    let metrics = Metrics::new();
    let _authority = Authority::of(None, &[], &metrics);
    for fault in TokenFault::ALL {
        assert_eq!(rejections(&metrics, *fault), 0, "{fault}");
    }
}

#[test]
fn the_token_subprotocol_is_the_offer_with_the_prefix() {
    let mut jwt = jwt();
    let token = |jwt: &Jwt, offered: &[&'static str]| {
        Authority::of(Some(jwt), &[], &Metrics::new()).token_subprotocol(offered)
    };
    assert_eq!(token(&jwt, &["relay.v1", "bearer.a"]), Some("bearer.a"));
    assert_eq!(token(&jwt, &["bearer.a", "bearer.b"]), Some("bearer.a"));
    assert_eq!(token(&jwt, &["relay.v1", "Bearer.a"]), None);
    assert_eq!(token(&jwt, &[]), None);
    jwt.token_from = vec![TokenSource::Header];
    assert_eq!(token(&jwt, &["bearer.a"]), None);
    let open = Authority::of(None, &[], &Metrics::new());
    assert_eq!(open.token_subprotocol(&["bearer.a"]), None);
}

/// Tokens, claims and query strings are in no log line at any level, no metric, no `Debug`
/// and no `Display`.
#[test]
fn nothing_of_a_token_is_shown() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let marked = |name: &str| with(name, json!("marked-value"));
    let tokens = [
        sign(Algorithm::HS256, &marked("sub")),
        sign(Algorithm::HS256, &marked("iss")),
        sign(Algorithm::HS256, &marked("aud")),
        sign(Algorithm::HS256, &marked("type")),
        sign(Algorithm::HS256, &marked("exp")),
        sign(Algorithm::HS256, &marked("role")),
        hmac(&json!({"alg": "marked-value"}), SECRET, &claims()),
        hmac(&json!({"alg": "HS256"}), OTHER_SECRET, &marked("sub")),
        "marked-value".to_owned(),
        "marked-value.marked-value.marked-value".to_owned(),
    ];
    let metrics = Metrics::new();
    let mut shown = String::new();
    tracing::subscriber::with_default(subscriber, || {
        for authorize in [
            "claims.role > 1",
            "claims[claims.role]",
            "claims.sub",
            "true",
            "query.x > 1",
        ] {
            let route = route(Some(authorize));
            let authority = Authority::of(Some(&jwt()), std::slice::from_ref(&route), &metrics);
            for token in &tokens {
                match admit_to(&authority, &route, &bearer(token)) {
                    Ok(grant) => shown += &format!("{grant:?} {grant:#?}"),
                    Err(rejection) => shown += &format!("{rejection:?} {rejection}"),
                }
            }
        }
    });
    let logged = log.text();
    assert!(
        logged.contains("`authorize` can't be evaluated"),
        "{logged}"
    );
    shown += &logged;
    shown += &metrics.render();
    assert!(!shown.contains("marked"), "{shown}");
    for token in &tokens {
        for part in token.split('.').filter(|part| !part.is_empty()) {
            assert!(!shown.contains(part), "{shown}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_is_a_token(text in "\\PC{0,200}") {
        prop_assert!(verify(&jwt_with_hmac(), &text).is_err());
    }

    #[test]
    fn nothing_shaped_like_a_token_is_one(text in "[A-Za-z0-9_=-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}") {
        prop_assert!(verify(&jwt_with_hmac(), &text).is_err());
    }

    #[test]
    fn no_signed_claims_panic(exp in any_json(), iss in any_json(), aud in any_json(), sub in any_json()) {
        let claims = json!({"exp": exp, "nbf": iss, "iss": iss, "aud": aud, "sub": sub});
        let _ = verify(&jwt_with_hmac(), &sign(Algorithm::HS256, &claims));
    }

    /// No byte of a good token can be changed.
    #[test]
    fn a_token_is_as_it_was_signed(at in any::<prop::sample::Index>(), to in 0x20_u8..0x7f) {
        let good = sign(Algorithm::HS256, &claims());
        let mut changed = good.clone().into_bytes();
        *at.get_mut(&mut changed) = to;
        let changed = String::from_utf8(changed).unwrap();
        prop_assert_eq!(verify(&jwt_with_hmac(), &changed).is_ok(), changed == good);
    }

    #[test]
    fn no_header_admits(
        authorization in prop::collection::vec(header_bytes(), 0..3),
        cookies in prop::collection::vec(header_bytes(), 0..3),
        protocols in prop::collection::vec(header_bytes(), 0..3),
        query in ".{0,60}",
    ) {
        let mut headers = HeaderMap::new();
        let names = [(AUTHORIZATION, authorization), (COOKIE, cookies), (SEC_WEBSOCKET_PROTOCOL, protocols)];
        for (name, values) in names {
            append(&mut headers, &name, &values);
        }
        let mut jwt = jwt_with_hmac();
        jwt.token_from = vec![
            TokenSource::Header,
            TokenSource::Subprotocol { prefix: "bearer.".to_owned() },
            TokenSource::Cookie { name: "token".to_owned() },
            TokenSource::Query { name: "token".to_owned() },
        ];
        let query = BTreeMap::from([("token".to_owned(), query)]);
        let params = BTreeMap::new();
        let request = Request { headers: &headers, params: &params, query: &query, message: None };
        let authority = Authority::of(Some(&jwt), &[], &Metrics::new());
        prop_assert!(at_once(authority.admit(&route(None), &request)).is_err());
    }
}

/// Bytes that a header value may have, often with the words that sources look for.
fn header_bytes() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "",
        "Bearer ",
        "bearer",
        "bearer.",
        "token=",
        "a=b; token=\"",
        "relay.v1, bearer.",
    ]);
    (word, prop::collection::vec(0x20_u8..=0xff, 0..60))
        .prop_map(|(word, rest)| [word.as_bytes(), &rest].concat())
}

fn append(headers: &mut HeaderMap, name: &HeaderName, values: &[Vec<u8>]) {
    for value in values {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{0,4}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// A config with a key of each kind.
pub(super) fn jwt() -> Jwt {
    let keys = [
        HMAC_KEY,
        RSA_KEY,
        concat!(
            "[[auth.key]]\nalgorithms = ['ES256']\npublic_key = \"\"\"",
            include_str!("../../tests/keys/p256.pub.pem"),
            "\"\"\"\n"
        ),
        concat!(
            "[[auth.key]]\nalgorithms = ['ES384']\npublic_key = \"\"\"",
            include_str!("../../tests/keys/p384.pub.pem"),
            "\"\"\"\n"
        ),
        concat!(
            "[[auth.key]]\nalgorithms = ['EdDSA']\npublic_key = \"\"\"",
            include_str!("../../tests/keys/ed25519.pub.pem"),
            "\"\"\"\n"
        ),
    ];
    jwt_with(&keys.concat())
}

/// The same with the HMAC key alone.
pub(super) fn jwt_with_hmac() -> Jwt {
    jwt_with(HMAC_KEY)
}

fn jwt_with(keys: &str) -> Jwt {
    config(keys, "").auth.jwt.unwrap()
}

/// A route without a snapshot.
pub(super) fn route(authorize: Option<&str>) -> Route {
    let authorize = authorize.map(|source| format!("authorize = {}\n", json!(source)));
    route_with(&authorize.unwrap_or_default())
}

pub(super) fn route_with(lines: &str) -> Route {
    config(HMAC_KEY, lines).routes.remove(0)
}

fn config(keys: &str, route: &str) -> Config {
    let streams = "streams = ['job:{job_id}']\n";
    let streams = if route.contains("streams") {
        ""
    } else {
        streams
    };
    let text = format!(
        "{AUTH}{keys}[[route]]\nname = 'job'\npath = '/ws/jobs/{{job_id}}'\n{streams}{route}"
    );
    Config::parse(&text, "relay.toml", &|_| None).unwrap()
}

const AUTH: &str = "
[auth]
issuer = ['https://a.test', 'https://b.test']
audience = ['relay', 'also-relay']
require = { type = 'access', version = 2 }
";

const HMAC_KEY: &str = "
[[auth.key]]
algorithms = ['HS256', 'HS384', 'HS512']
secret = 'a test secret of at least 32 bytes'
";

const RSA_KEY: &str = concat!(
    "[[auth.key]]\nalgorithms = ['RS256', 'RS384', 'RS512', 'PS256', 'PS384', 'PS512']\n",
    "public_key = \"\"\"",
    include_str!("../../tests/keys/rsa.pub.pem"),
    "\"\"\"\n"
);

/// Claims that [`jwt`] accepts.
fn claims() -> Value {
    json!({
        "sub": "alice",
        "iss": "https://a.test",
        "aud": "relay",
        "type": "access",
        "version": 2,
        "exp": now() + 600,
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn without(name: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// A token signed by the key that [`jwt`] has for this algorithm.
fn sign(algorithm: Algorithm, claims: &Value) -> String {
    use jsonwebtoken::AlgorithmFamily;
    let key = match (algorithm.family(), algorithm) {
        (AlgorithmFamily::Hmac, _) => Ok(EncodingKey::from_secret(SECRET.as_bytes())),
        (AlgorithmFamily::Rsa, _) => {
            EncodingKey::from_rsa_pem(include_bytes!("../../tests/keys/rsa.pem"))
        }
        (AlgorithmFamily::Ec, Algorithm::ES384) => {
            EncodingKey::from_ec_pem(include_bytes!("../../tests/keys/p384.pem"))
        }
        (AlgorithmFamily::Ec, _) => {
            EncodingKey::from_ec_pem(include_bytes!("../../tests/keys/p256.pem"))
        }
        (AlgorithmFamily::Ed, _) => {
            EncodingKey::from_ed_pem(include_bytes!("../../tests/keys/ed25519.pem"))
        }
    };
    sign_with(algorithm, &key.unwrap(), claims)
}

fn sign_with(algorithm: Algorithm, key: &EncodingKey, claims: &Value) -> String {
    jsonwebtoken::encode(&jsonwebtoken::Header::new(algorithm), claims, key).unwrap()
}

/// Any header, signed with HS256 whatever it says.
fn hmac(header: &Value, secret: &str, claims: &Value) -> String {
    signed(header, secret, &claims.to_string())
}

fn signed_text(payload: &str) -> String {
    signed(&json!({"alg": "HS256"}), SECRET, payload)
}

fn signed(header: &Value, secret: &str, payload: &str) -> String {
    let message = format!("{}.{}", encode(header), URL_SAFE_NO_PAD.encode(payload));
    let key = EncodingKey::from_secret(secret.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    format!("{message}.{}", signature.unwrap())
}

fn encode(json: &Value) -> String {
    URL_SAFE_NO_PAD.encode(json.to_string())
}

fn parts(token: &str) -> [&str; 3] {
    let parts: Vec<&str> = token.split('.').collect();
    parts.try_into().unwrap()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Keys of the config need no waiting.
pub(super) fn at_once<T>(future: impl Future<Output = T>) -> T {
    future.now_or_never().expect("there is nothing to wait for")
}

fn verify(jwt: &Jwt, token: &str) -> Result<(), TokenFault> {
    at_once(Verifier::new(jwt, &Metrics::new()).verify(token)).map(|_| ())
}

fn admit(authority: &Authority, headers: &HeaderMap) -> Result<Grant, Rejection> {
    admit_to(authority, &route(None), headers)
}

fn admit_to(authority: &Authority, route: &Route, headers: &HeaderMap) -> Result<Grant, Rejection> {
    let params = BTreeMap::from([("job_id".to_owned(), "marked-param".to_owned())]);
    let query = BTreeMap::from([("x".to_owned(), "marked-query".to_owned())]);
    let request = Request {
        message: None,
        headers,
        params: &params,
        query: &query,
    };
    at_once(authority.admit(route, &request))
}

fn bearer(token: &str) -> HeaderMap {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).unwrap();
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

fn rejections(metrics: &Metrics, fault: TokenFault) -> u64 {
    let line = format!(
        "relay_token_rejections_total{{reason=\"{}\"}} ",
        fault.reason()
    );
    let text = metrics.render();
    let value = text.lines().find_map(|text| text.strip_prefix(&line));
    value.expect("every reason has a line").parse().unwrap()
}

/// What has been logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
