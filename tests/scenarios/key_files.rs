//! Keys in files that are replaced while the relay runs.

use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;
use tempfile::TempDir;

use crate::JOB;
use crate::support::config::Config;
use crate::support::redis::Redis;
use crate::support::relay::Relay;
use crate::support::token::{RsaKey, claims_of, signed};
use crate::support::wait::eventually;

const RELOADS: &str = "relay_key_file_reloads_total";
const OLD: &str = "the-secret-of-last-year-which-has-48-bytes-in-it";
const NEW: &str = "the-secret-of-this-year-which-has-48-bytes-in-it";

/// A mounted secret as Kubernetes has it: the file is a link into `..data`, which is a link to
/// a directory of the time, and is replaced as a whole.
struct Mount(TempDir);

impl Mount {
    fn new(content: &str) -> Self {
        let mount = Self(tempfile::tempdir().expect("a directory"));
        mount.replace("1", content);
        symlink("..data/key", mount.file()).expect("a link");
        mount
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self) -> std::path::PathBuf {
        self.path().join("key")
    }

    fn replace(&self, version: &str, content: &str) {
        let dir = self.path().join(version);
        std::fs::create_dir(&dir).expect("a directory");
        std::fs::write(dir.join("key"), content).expect("a file");
        symlink(version, self.path().join("..new")).expect("a link");
        std::fs::rename(self.path().join("..new"), self.path().join("..data")).expect("the swap");
    }
}

fn hmac(secret: &str) -> String {
    signed(secret.as_bytes(), &claims_of("alice", json!({})))
}

async fn reloaded(relay: &Relay, outcome: &str, times: f64) {
    let labels = [("outcome", outcome)];
    relay.metric_reaches(RELOADS, &labels, times).await;
}

async fn unusable(relay: &Relay, value: f64) {
    let labels = [("key", "1")];
    relay
        .metric_reaches("relay_key_file_unusable", &labels, value)
        .await;
}

#[tokio::test]
async fn s22_a_secret_in_a_file_is_read_again_when_it_changes() {
    let redis = Redis::start().await;
    let mount = Mount::new(&format!("{OLD}\n"));
    let config = Config::new(&redis).with(&format!(
        "[[auth.key]]\nalgorithms = [\"HS256\"]\nsecret = \"${{file:{}}}\"",
        mount.file().display()
    ));
    let relay = Relay::start(&config).await;
    let mut before = relay.upgrade(JOB).token(hmac(OLD)).open().await;
    before.expect_live().await;
    assert_eq!(
        relay.upgrade(JOB).token(hmac(NEW)).refused().await.code(),
        4401
    );

    mount.replace("2", &format!("{NEW}\n"));
    reloaded(&relay, "ok", 1.0).await;
    let mut after = relay.upgrade(JOB).token(hmac(NEW)).open().await;
    after.expect_live().await;
    let refusal = relay.upgrade(JOB).token(hmac(OLD)).refused().await;
    assert_eq!(refusal.reason(), "token_signature");

    // What can't be used is said once, and the key stays.
    unusable(&relay, 0.0).await;
    mount.replace("3", "short");
    reloaded(&relay, "failed", 1.0).await;
    unusable(&relay, 1.0).await;
    mount.replace("4", "");
    // The same problem is not told again: the next change shows that it was seen.
    std::fs::remove_file(mount.path().join("..data")).expect("the mount is gone");
    reloaded(&relay, "failed", 2.0).await;
    relay
        .upgrade(JOB)
        .token(hmac(NEW))
        .open()
        .await
        .expect_live()
        .await;
    // As it was: nothing to take, and no fault any more.
    mount.replace("5", NEW);
    unusable(&relay, 0.0).await;
    mount.replace("6", OLD);
    reloaded(&relay, "ok", 2.0).await;
    relay
        .upgrade(JOB)
        .token(hmac(OLD))
        .open()
        .await
        .expect_live()
        .await;

    redis
        .xadd(crate::KEY, "1-0", "for those who are there")
        .await;
    before.expect_event("1-0", "for those who are there").await;
    after.expect_event("1-0", "for those who are there").await;
    for secret in [OLD, NEW] {
        assert!(!relay.log_contains(secret), "a secret was logged");
    }
}

#[tokio::test]
async fn s22_a_public_key_in_a_file_is_read_again_when_it_changes() {
    let redis = Redis::start().await;
    let (old, new) = (RsaKey::generate(), RsaKey::generate());
    let mount = Mount::new(&old.public_pem());
    let config = Config::new(&redis).with(&format!(
        "[[auth.key]]\nalgorithms = [\"RS256\"]\npublic_key = \"${{file:{}}}\"",
        mount.file().display()
    ));
    let relay = Relay::start(&config).await;
    let claims = claims_of("alice", json!({}));
    let opens = async |key: &RsaKey| {
        let upgrade = relay.upgrade(JOB).token(key.sign(&claims));
        upgrade.open().await.expect_live().await;
    };
    opens(&old).await;
    mount.replace("2", &new.public_pem());
    eventually("the new key", async || {
        relay.log_contains("its file has changed").then_some(())
    })
    .await;
    opens(&new).await;
    let refusal = relay.upgrade(JOB).token(old.sign(&claims)).refused().await;
    assert_eq!(refusal.reason(), "token_signature");
}
