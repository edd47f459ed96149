//! A certificate with its key, out of two PEM files.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// Where a certificate and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate, then those that lead to its root.
    pub cert: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// A certificate whose key belongs to it.
#[derive(Clone)]
pub struct Certificate {
    /// What a server signs with.
    pub key: Arc<CertifiedKey>,
}

/// Shows nothing of the key.
impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}

/// What is wrong with a certificate or its key, without its path.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Of the file with the certificate.
    #[error("{0}")]
    Cert(String),
    /// Of the file with the key.
    #[error("{0}")]
    Key(String),
}

/// What two files hold, before it is looked at.
pub struct Contents {
    cert: Vec<u8>,
    key: Vec<u8>,
}

impl CertificateFiles {
    /// Reads and checks both, blocking.
    pub fn load(&self) -> Result<Certificate, CertificateError> {
        let cert = std::fs::read(&self.cert);
        let key = std::fs::read(&self.key);
        Contents::of(cert, key)?.certificate()
    }

    /// Reads both.
    pub async fn read(&self) -> Result<Contents, CertificateError> {
        let cert = tokio::fs::read(&self.cert).await;
        let key = tokio::fs::read(&self.key).await;
        Contents::of(cert, key)
    }
}

impl Contents {
    fn of(cert: io::Result<Vec<u8>>, key: io::Result<Vec<u8>>) -> Result<Self, CertificateError> {
        let unreadable = |error: io::Error| format!("can't be read: {error}");
        Ok(Self {
            cert: cert.map_err(|error| CertificateError::Cert(unreadable(error)))?,
            key: key.map_err(|error| CertificateError::Key(unreadable(error)))?,
        })
    }

    /// The same for the same contents. It tells nothing of the key.
    pub fn fingerprint(&self) -> [u8; 32] {
        let [cert, key] = [&self.cert, &self.key].map(|bytes| digest(&SHA256, bytes));
        let mut fingerprint = [0; 32];
        let both = digest(&SHA256, &[cert.as_ref(), key.as_ref()].concat());
        fingerprint.copy_from_slice(both.as_ref());
        fingerprint
    }

    /// Checks that they are a certificate and its key.
    pub fn certificate(&self) -> Result<Certificate, CertificateError> {
        let chain = CertificateDer::pem_slice_iter(&self.cert).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| CertificateError::Cert(is_no_pem(&error)))?;
        if chain.is_empty() {
            let what = "holds no certificate; expected PEM that begins with BEGIN CERTIFICATE";
            return Err(CertificateError::Cert(what.to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| {
            CertificateError::Key(match error {
                PemError::NoItemsFound => {
                    "holds no private key; expected PEM that begins with BEGIN PRIVATE KEY"
                        .to_owned()
                }
                error => is_no_pem(&error),
            })
        })?;
        let key = CertifiedKey::from_der(chain, key, &default_provider())
            .map_err(|error| wrong(&error))?;
        Ok(Certificate { key: Arc::new(key) })
    }
}

/// The parser's own words could show a part of the key.
fn is_no_pem(_error: &PemError) -> String {
    "is broken; expected PEM".to_owned()
}

fn wrong(error: &rustls::Error) -> CertificateError {
    match error {
        rustls::Error::InconsistentKeys(_) => CertificateError::Key(
            "does not belong to the certificate; expected the certificate's own key".to_owned(),
        ),
        rustls::Error::InvalidCertificate(_) => {
            CertificateError::Cert("holds no X.509 certificate".to_owned())
        }
        _ => CertificateError::Key("can't be used; expected an RSA, EC or Ed25519 key".to_owned()),
    }
}
