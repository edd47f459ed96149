//! A certificate for 127.0.0.1 and its key: `certificate DIRECTORY` writes cert.pem and key.pem.

use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from);
    let directory = directory.ok_or_else(|| anyhow::anyhow!("usage: certificate DIRECTORY"))?;
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    std::fs::write(directory.join("cert.pem"), made.cert.pem())?;
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(())
}
