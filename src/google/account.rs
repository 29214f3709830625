//! A service account whose key is made on this machine, and its file.

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    digest,
    encoding::{AsDer, Pkcs8V1Der},
    error::Unspecified,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{self, KeyPair as _},
};
use pem::{EncodeConfig, LineEnding, Pem};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::UNIVERSE_DOMAIN;

/// A service account that only this machine knows.
#[derive(Debug)]
pub struct ServiceAccount {
    email: String,
    key: KeyPair,
    key_id: String,
}

/// Why a service account could not be created.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The key could not be generated or encoded.
    #[error("failed to generate an RSA key")]
    Key(#[source] Unspecified),

    /// The file could not be written.
    #[error("failed to write service account file `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
}

/// The file, as Google's clients read it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct AccountFile {
    r#type: String,
    project_id: String,
    private_key_id: String,
    private_key: String,
    client_email: String,
    client_id: String,
    token_uri: String,
    universe_domain: String,
}

// === impl ServiceAccount ===

impl ServiceAccount {
    /// Reads the service account in the file `path`, or creates one there.
    ///
    /// When it returns, the file fits `project_id` and `token_uri`, and only its owner may read it.
    /// An existing key is used again, because generating one takes a tenth of a second of CPU. A
    /// file that is not a service account is replaced. Blocks. If two processes do this at once,
    /// the file of one of them remains, complete.
    pub fn ensure(path: &Path, project_id: &str, token_uri: &str) -> Result<Self, AccountError> {
        let old = fs::read(path).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let existing = old.as_ref().and_then(|file: &AccountFile| parse_key(&file.private_key));
        let key = match existing {
            Some(key) => key,
            None => KeyPair::generate(KeySize::Rsa2048).map_err(AccountError::Key)?,
        };

        let account = Self {
            email: format!("twined@{project_id}.iam.gserviceaccount.com"),
            key_id: key_id(&key),
            key,
        };
        let file = account.file(project_id, token_uri)?;

        if old.as_ref() != Some(&file) {
            let json = serde_json::to_vec_pretty(&file).expect("texts are JSON");
            replace(path, &json)
                .map_err(|source| AccountError::Write { path: path.to_owned(), source })?;
        }
        Ok(account)
    }

    /// The account's address: `twined@<project>.iam.gserviceaccount.com`.
    pub fn email(&self) -> &str {
        &self.email
    }

    /// The id of the key that signs its tokens, which their header names.
    pub(super) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Signs `message` with RS256, an algorithm of JSON web tokens.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let mut signed = vec![0; self.key.public_modulus_len()];
        let random = SystemRandom::new();
        self.key.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut signed)?;
        Ok(signed)
    }

    #[cfg(test)]
    pub(super) fn public_key(&self) -> &[u8] {
        self.key.public_key().as_ref()
    }

    fn file(&self, project_id: &str, token_uri: &str) -> Result<AccountFile, AccountError> {
        let der: Pkcs8V1Der<'_> = self.key.as_der().map_err(AccountError::Key)?;

        Ok(AccountFile {
            r#type: "service_account".to_owned(),
            project_id: project_id.to_owned(),
            private_key_id: self.key_id.clone(),
            private_key: to_pem(der.as_ref()),
            client_email: self.email.clone(),
            client_id: super::token::SUBJECT.to_owned(),
            token_uri: token_uri.to_owned(),
            universe_domain: UNIVERSE_DOMAIN.to_owned(),
        })
    }
}

/// Whether the file `json` is a service account whose tokens come from `token_uri`. Google's
/// clients follow other kinds of files to any URL, with any file of the user.
pub fn uses_token_uri(json: &[u8], token_uri: &str) -> bool {
    serde_json::from_slice(json).is_ok_and(|file: AccountFile| {
        file.r#type == "service_account" && file.token_uri == token_uri
    })
}

// === The key as text ===

const PEM_TAG: &str = "PRIVATE KEY";

fn to_pem(der: &[u8]) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new(PEM_TAG, der), config)
}

fn parse_key(text: &str) -> Option<KeyPair> {
    let pem = pem::parse(text).ok().filter(|pem| pem.tag() == PEM_TAG)?;
    KeyPair::from_pkcs8(pem.contents()).ok()
}

/// Forty hexadecimal digits, like Google's key ids. They are derived from the public key, so the
/// same key has the same id.
fn key_id(key: &KeyPair) -> String {
    let sum = digest::digest(&digest::SHA256, key.public_key().as_ref());
    sum.as_ref().iter().take(20).map(|byte| format!("{byte:02x}")).collect()
}

// === The file ===

/// Writes a file beside `path` and renames it, so that nobody reads half a file.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("{}.tmp", Uuid::new_v4()));
    let written = write_private(&beside, content).and_then(|()| fs::rename(&beside, path));

    if written.is_err() {
        // The file may not exist. The first error is the one that is returned.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TOKEN_URI: &str = "http://127.0.0.1:8094/token";

    fn read(path: &Path) -> AccountFile {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn the_file_is_a_service_account_that_only_its_owner_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("account.json");

        let account = ServiceAccount::ensure(&path, "a-project", TOKEN_URI).unwrap();

        let file = read(&path);
        assert_eq!(file.r#type, "service_account");
        assert_eq!(file.client_email, "twined@a-project.iam.gserviceaccount.com");
        assert_eq!(file.client_email, account.email());
        assert_eq!(file.token_uri, TOKEN_URI);
        assert_eq!(file.private_key_id.len(), 40);
        assert!(file.private_key.lines().all(|line| line.len() <= 64));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_fits_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("account.json");
        ServiceAccount::ensure(&path, "a-project", TOKEN_URI).unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        let content = fs::read(&path).unwrap();

        ServiceAccount::ensure(&path, "a-project", TOKEN_URI).unwrap();

        assert_eq!(fs::read(&path).unwrap(), content);
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
    }

    #[test]
    fn another_port_or_project_keeps_the_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("account.json");
        ServiceAccount::ensure(&path, "a-project", TOKEN_URI).unwrap();
        let first = read(&path);

        ServiceAccount::ensure(&path, "b-project", "http://127.0.0.1:1/token").unwrap();

        let second = read(&path);
        assert_eq!(second.token_uri, "http://127.0.0.1:1/token");
        assert_eq!(second.client_email, "twined@b-project.iam.gserviceaccount.com");
        assert_eq!(second.private_key, first.private_key);
        assert_eq!(second.private_key_id, first.private_key_id);
    }

    #[test]
    fn what_is_no_service_account_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("account.json");

        for content in ["", "{}", r#"{"type": "authorized_user"}"#] {
            fs::write(&path, content).unwrap();
            ServiceAccount::ensure(&path, "a-project", TOKEN_URI).unwrap();
            assert_eq!(read(&path).project_id, "a-project");
        }
    }

    #[test]
    fn only_a_service_account_of_the_same_network_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("account.json");
        ServiceAccount::ensure(&path, "a-project", TOKEN_URI).unwrap();
        let json = fs::read(&path).unwrap();

        assert!(uses_token_uri(&json, TOKEN_URI));
        assert!(!uses_token_uri(&json, "http://evil.example/google/token"));
        let text = String::from_utf8(json).unwrap();
        let external = text.replace("service_account", "external_account");
        assert!(!uses_token_uri(external.as_bytes(), TOKEN_URI));
        assert!(!uses_token_uri(b"{}", TOKEN_URI));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let path = Path::new("/nowhere/at/all/account.json");

        let error = ServiceAccount::ensure(path, "a-project", TOKEN_URI).unwrap_err();

        assert!(error.to_string().contains("/nowhere/at/all/account.json"));
    }
}
