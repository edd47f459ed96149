//! An issuer: keys of its own, the set that it publishes, and TLS in front of it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{CertificateParams, Issuer, KeyPair as CertificateKey};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::api::{FakeApi, Reply};
use super::token::pem;

/// A P-256 key pair with a name.
pub(crate) struct IssuerKey {
    pub(crate) kid: String,
    pair: EcdsaKeyPair,
}

impl IssuerKey {
    pub(crate) fn new(kid: &str) -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING);
        Self {
            kid: kid.to_owned(),
            pair: pair.expect("a key pair"),
        }
    }

    /// The public key as the set has it.
    pub(crate) fn jwk(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        let (x, y) = point[1..].split_at(32);
        let part = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "x": part(x), "y": part(y) })
    }

    /// A token with ES256 and the kid of this key.
    pub(crate) fn sign(&self, claims: &Value) -> String {
        self.sign_as(Some(&self.kid), claims)
    }

    /// The same with another kid, or none.
    pub(crate) fn sign_as(&self, kid: Option<&str>, claims: &Value) -> String {
        let header = Header {
            kid: kid.map(str::to_owned),
            ..Header::new(Algorithm::ES256)
        };
        self.sign_header(&header, claims)
    }

    pub(crate) fn sign_header(&self, header: &Header, claims: &Value) -> String {
        let der = self.pair.to_pkcs8v1().expect("a key pair");
        let key = EncodingKey::from_ec_der(der.as_ref());
        encode(header, claims, &key).expect("claims can be signed")
    }
}

/// What an issuer with these keys answers.
pub(crate) fn set(keys: &[&IssuerKey]) -> Reply {
    let keys: Vec<_> = keys.iter().map(|key| key.jwk()).collect();
    Reply::json(&json!({ "keys": keys }))
}

/// An `[[auth.key]]` for what this issuer publishes.
pub(crate) fn key_of(issuer: &FakeApi, more: &str) -> String {
    format!(
        "[[auth.key]]\nalgorithms = [\"ES256\"]\njwks_url = \"{}\"\n{more}\n",
        issuer.url("/jwks.json")
    )
}

/// TLS before a server, with a certificate of an authority that nobody knows.
pub(crate) struct TlsFront {
    address: SocketAddr,
    dir: TempDir,
    _connections: JoinSet<()>,
}

impl TlsFront {
    pub(crate) async fn start(behind: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("the port is bound");
        let (authority, acceptor) = certified();
        let dir = tempfile::tempdir().expect("a directory for the authority");
        std::fs::write(dir.path().join("ca.pem"), authority).expect("its certificate");
        let mut connections = JoinSet::new();
        connections.spawn(accept(listener, acceptor, behind));
        Self {
            address,
            dir,
            _connections: connections,
        }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// The certificate of the authority.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

/// An authority as PEM, and a server that it vouches for.
fn certified() -> (String, TlsAcceptor) {
    let authority_key = CertificateKey::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).expect("a certificate");
    let issuer = Issuer::new(params, authority_key);
    let key = CertificateKey::generate().expect("a key");
    let server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("an address");
    let server = server.signed_by(&key, &issuer).expect("a certificate");
    let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a private key");
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("known versions")
        .with_no_client_auth()
        .with_single_cert(vec![server.der().clone()], private)
        .expect("a certificate with its key");
    (
        pem("CERTIFICATE", authority.der()),
        TlsAcceptor::from(Arc::new(config)),
    )
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, behind: SocketAddr) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let acceptor = acceptor.clone();
        connections.spawn(async move {
            // A relay that does not trust it hangs up: that is for the test to judge.
            let Ok(mut client) = acceptor.accept(stream).await else {
                return;
            };
            let mut server = TcpStream::connect(behind).await.expect("the server");
            copy_bidirectional(&mut client, &mut server).await.ok();
        });
        while connections.try_join_next().is_some() {}
    }
}
