//! `[server.tls]`.

use std::path::PathBuf;

use super::source::Source;
use super::{ConfigError, written};
use crate::tls::{Certificate, CertificateError, CertificateFiles};

/// `[server.tls]`, with what its files held.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Read again when they change.
    pub files: CertificateFiles,
    /// What they held when the config was read.
    pub certificate: Certificate,
}

impl written::Tls {
    pub(super) fn check(&self, source: &Source<'_>) -> Result<Option<Tls>, ConfigError> {
        let path = |written: Option<&written::Text>| {
            let path = written.map(|written| source.text(written)).transpose()?;
            Ok(path.filter(|path| !path.is_empty()).map(PathBuf::from))
        };
        let (cert, key) = (path(self.cert.as_ref())?, path(self.key.as_ref())?);
        match (cert, key, &self.cert, &self.key) {
            (Some(cert), Some(key), Some(cert_at), Some(key_at)) => {
                let files = CertificateFiles { cert, key };
                let loaded = files.load().map_err(|error| match &error {
                    CertificateError::Cert(_) => wrong(source, cert_at, &error),
                    CertificateError::Key(_) => wrong(source, key_at, &error),
                });
                loaded.map(|certificate| Some(Tls { files, certificate }))
            }
            (Some(_), None, Some(at), _) => Err(source.error(
                &at.span(),
                "there is no `key` with it; expected both, or neither",
            )),
            (None, Some(_), _, Some(at)) => Err(source.error(
                &at.span(),
                "there is no `cert` with it; expected both, or neither",
            )),
            _ => Ok(None),
        }
    }
}

fn wrong(source: &Source<'_>, at: &written::Text, error: &CertificateError) -> ConfigError {
    source.error(&at.span(), format!("the file {:?} {error}", at.get_ref()))
}
