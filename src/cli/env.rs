//! `twined env`: the variables with which Google's clients and the SDK use the local network.

use crate::cli::network::NetworkArgs;
use crate::cli::{Failure, OK, UNREACHABLE, terminal};
use crate::config::{cache_folder, env_variable};
use crate::google;
use crate::http::google::TOKEN_PATH;
use crate::private_path::{self, PathError};
use crate::sdk::{shim, variables};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const PYTHONPATH: &str = "PYTHONPATH";

/// Without these, Google's clients send requests for this machine to a proxy, if there is one.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// The largest file of credentials that is read, in bytes. One has about 2,400.
const MAX_CREDENTIALS: u64 = 64 * 1024;

/// The hosts that must not be reached through a proxy.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "localhost"];

/// Print the variables with which Google's clients and the Octue SDK use the local network
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    eval \"$(twined env --shim)\"            # sh, bash, zsh\n  \
    twined env --shell fish | source\n  \
    twined env --shell powershell | Invoke-Expression")]
pub(super) struct Args {
    /// Shell whose syntax to print
    #[arg(long, value_enum, default_value_t)]
    shell: Shell,

    /// Provide the JSON schemas that the SDK otherwise downloads, to work without the internet
    #[arg(long)]
    shim: bool,

    #[command(flatten)]
    network: NetworkArgs,
}

/// A shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    /// sh, bash, zsh and other POSIX shells
    #[default]
    Sh,
    /// fish
    Fish,
    /// PowerShell
    Powershell,
}

/// Why the network's credentials are refused.
#[derive(Debug, thiserror::Error)]
enum CredentialsError {
    #[error(
        "the network's credentials cannot be used from here: use a network of this machine, started \
         by the same user, with its `--data` in a folder of theirs"
    )]
    Path(#[source] PathError),
    #[error("failed to read the network's credentials `{}`", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("`{}` is not a service account of this network", .0.display())]
    NotOfNetwork(PathBuf),
}

/// There is no folder for the shim.
#[derive(Debug, thiserror::Error)]
#[error("no folder for the shim: set HOME or XDG_CACHE_HOME")]
struct NoCacheFolder;

/// Prints the variables.
pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let Args { shell, shim, network } = args;
    let mut variables = network.describe().await?;
    let credentials =
        check_credentials(&variables).map_err(|error| Failure::new(UNREACHABLE, error))?;
    let credentials = credentials.to_string_lossy().into_owned();
    variables.insert(variables::GOOGLE_APPLICATION_CREDENTIALS.into(), credentials);
    for name in NO_PROXY {
        variables.insert(name.into(), no_proxy(env_variable(name).as_deref()));
    }
    if shim {
        let cache = cache_folder().ok_or_else(|| Failure::failed(NoCacheFolder))?;
        let folder = shim::install(&cache).map_err(Failure::failed)?;
        variables
            .insert(PYTHONPATH.into(), python_path(&folder, env_variable(PYTHONPATH).as_deref()));
    }
    terminal::answer(&shell.print(&variables)).map_err(Failure::failed)?;
    Ok(OK)
}

/// The file of the network's service account, at a path that other users cannot change. Google's
/// clients follow such a file, so its tokens must come from the network itself.
fn check_credentials(described: &BTreeMap<String, String>) -> Result<PathBuf, CredentialsError> {
    let variable = |name: &str| described.get(name).map(String::as_str).unwrap_or_default();
    let path = Path::new(variable(variables::GOOGLE_APPLICATION_CREDENTIALS));
    let path = private_path::resolve(path).map_err(CredentialsError::Path)?;
    let failed = |error| CredentialsError::Read(path.clone(), error);
    let metadata = fs::symlink_metadata(&path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > MAX_CREDENTIALS {
        return Err(CredentialsError::NotOfNetwork(path));
    }
    let http = variable(variables::GCE_METADATA_HOST);
    let token_uri = format!("http://{http}{TOKEN_PATH}");
    match google::uses_token_uri(&fs::read(&path).map_err(failed)?, &token_uri) {
        true => Ok(path),
        false => Err(CredentialsError::NotOfNetwork(path)),
    }
}

/// The shim first, then the previous folders. The shim is listed once.
fn python_path(shim: &Path, old: Option<&str>) -> String {
    let shim = shim.to_string_lossy();
    let old = old.unwrap_or_default().split(':').filter(|part| !part.is_empty() && *part != shim);
    [&*shim].into_iter().chain(old).collect::<Vec<_>>().join(":")
}

/// The previous hosts, then this machine.
fn no_proxy(old: Option<&str>) -> String {
    let old = old.unwrap_or_default().split(',').map(str::trim);
    let old = old.filter(|host| !host.is_empty() && !LOOPBACK.contains(host));
    old.chain(LOOPBACK).collect::<Vec<_>>().join(",")
}

// === impl Shell ===

impl Shell {
    fn print(self, variables: &BTreeMap<String, String>) -> String {
        let line = |(name, value): (&String, &String)| match self {
            Self::Sh => format!("export {name}='{}'", value.replace('\'', r"'\''")),
            Self::Fish => {
                format!("set -gx {name} '{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
            }
            Self::Powershell => {
                // PowerShell also ends a string at a typographic quotation mark; doubled, it stands
                // for itself.
                let quote = |c| ['\'', '\u{2018}', '\u{2019}', '\u{201a}', '\u{201b}'].contains(&c);
                let doubled = |c| std::iter::repeat_n(c, if quote(c) { 2 } else { 1 });
                format!("$env:{name} = '{}'", value.chars().flat_map(doubled).collect::<String>())
            }
        };
        variables.iter().map(line).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_quoted_for_each_shell() {
        let variables = BTreeMap::from([("A".to_owned(), r"it's \ $HOME".to_owned())]);
        for (shell, line) in [
            (Shell::Sh, r"export A='it'\''s \ $HOME'"),
            (Shell::Fish, r"set -gx A 'it\'s \\ $HOME'"),
            (Shell::Powershell, r"$env:A = 'it''s \ $HOME'"),
        ] {
            assert_eq!(shell.print(&variables), line);
        }
        let quotes = BTreeMap::from([("A".to_owned(), "\u{2019};calc;\u{201b}".to_owned())]);
        let line = "$env:A = '\u{2019}\u{2019};calc;\u{201b}\u{201b}'";
        assert_eq!(Shell::Powershell.print(&quotes), line);
    }

    #[test]
    fn no_proxy_lists_this_machine_after_the_previous_hosts() {
        assert_eq!(no_proxy(None), "127.0.0.1,localhost");
        assert_eq!(no_proxy(Some(".corp, localhost")), ".corp,127.0.0.1,localhost");
    }

    #[test]
    fn the_shim_comes_first_and_once() {
        let shim = Path::new("/s");
        assert_eq!(python_path(shim, None), "/s");
        assert_eq!(python_path(shim, Some("/a:/s:/b")), "/s:/a:/b");
    }
}
