//! Certificates of a test's own, and where they are mounted.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;
use tokio_tungstenite::Connector;

use super::token::pem;

/// A certificate for localhost that has signed itself.
pub(crate) struct Identity {
    made: rcgen::CertifiedKey<rcgen::KeyPair>,
}

impl Identity {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        Self {
            made: made.expect("a certificate"),
        }
    }

    pub(crate) fn cert_pem(&self) -> String {
        pem("CERTIFICATE", self.made.cert.der())
    }

    pub(crate) fn key_pem(&self) -> String {
        pem("PRIVATE KEY", &self.made.signing_key.serialize_der())
    }

    /// Trusts this certificate alone.
    pub(crate) fn trust(&self) -> Connector {
        self.trust_with(rustls::ALL_VERSIONS, &[])
    }

    pub(crate) fn trust_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&str],
    ) -> Connector {
        let mut roots = RootCertStore::empty();
        roots.add(self.made.cert.der().clone()).expect("a root");
        let mut config = ClientConfig::builder_with_protocol_versions(versions)
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Connector::Rustls(Arc::new(config))
    }
}

/// A folder like that of a mounted Kubernetes secret: its files lead through one symbolic link,
/// which is replaced.
pub(crate) struct Mount {
    dir: TempDir,
    versions: usize,
}

impl Mount {
    pub(crate) fn new(identity: &Identity) -> Self {
        let mut mount = Self {
            dir: tempfile::tempdir().expect("a directory for certificates"),
            versions: 0,
        };
        mount.put(&identity.cert_pem(), &identity.key_pem());
        for name in ["tls.crt", "tls.key"] {
            let link = mount.dir.path().join(name);
            symlink(Path::new("..data").join(name), link).expect("a link");
        }
        mount
    }

    /// Replaces both files in one step.
    pub(crate) fn put(&mut self, cert: &str, key: &str) {
        self.versions += 1;
        let version = format!("..version_{}", self.versions);
        let folder = self.dir.path().join(&version);
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("tls.crt"), cert).expect("a file");
        std::fs::write(folder.join("tls.key"), key).expect("a file");
        let link = self.dir.path().join("..data_new");
        symlink(&version, &link).expect("a link");
        std::fs::rename(link, self.dir.path().join("..data")).expect("a new name for the link");
    }

    pub(crate) fn cert(&self) -> PathBuf {
        self.dir.path().join("tls.crt")
    }

    /// `[server.tls]` of a relay.
    pub(crate) fn config(&self) -> String {
        let (cert, key) = (self.cert(), self.dir.path().join("tls.key"));
        format!(
            "[server.tls]\ncert = \"{}\"\nkey = \"{}\"\n",
            cert.display(),
            key.display()
        )
    }
}
