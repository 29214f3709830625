//! `twined env`: what makes Google's clients and the SDK use the local network.

use crate::cli::network::{Described, NetworkArgs};
use crate::cli::{Failure, OK, UNREACHABLE, terminal};
use crate::config::ours;
use crate::sdk::{shim, variables};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

const PYTHONPATH: &str = "PYTHONPATH";

/// Google's clients would send what is for this machine to a proxy, if there is one.
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// What no proxy is to have.
const LOOPBACK: [&str; 2] = ["127.0.0.1", "localhost"];

/// Print what makes Google's clients and the Octue SDK use the local network
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    eval \"$(twined env --shim)\"            # sh, bash, zsh\n  \
    twined env --shell fish | source\n  \
    twined env --shell powershell | Invoke-Expression")]
pub struct Args {
    /// Shell to print for
    #[arg(long, value_enum, default_value_t)]
    shell: Shell,

    /// Stand in for the JSON schemas that the SDK downloads, so that it works without a network
    #[arg(long)]
    shim: bool,

    #[command(flatten)]
    network: NetworkArgs,
}

/// Whose syntax.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    /// sh, bash, zsh and their kin
    #[default]
    Sh,
    /// fish
    Fish,
    /// PowerShell
    Powershell,
}

/// A folder that is not put on `PYTHONPATH`.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{}` is not this version's shim, or other users can write it: start the network with this \
     `twined`, as the same user, and name it with `--url`", .folder.display()
)]
struct ShimError {
    folder: PathBuf,
    #[source]
    source: Option<io::Error>,
}

/// Prints it.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let Args { shell, shim, network } = args;
    let Described { variables, shim: folder } = network.describe().await?;
    let untrusted = |error| Failure::new(UNREACHABLE, error);
    let (mut variables, unknown) = variables::split_known(variables).map_err(untrusted)?;
    if !unknown.is_empty() {
        let names = terminal::safe(&unknown.join(", "));
        terminal::note(&format!("twined: left out what this version does not know: {names}"));
    }
    for name in NO_PROXY {
        variables.insert(name.into(), no_proxy(ours(name).as_deref()));
    }
    if shim {
        check_shim(&folder).map_err(|error| Failure::new(UNREACHABLE, error))?;
        variables.insert(PYTHONPATH.into(), python_path(&folder, ours(PYTHONPATH).as_deref()));
    }
    terminal::answer(&shell.print(&variables)).map_err(Failure::failed)?;
    Ok(OK)
}

/// What a network calls its shim must be one: Python runs what is on `PYTHONPATH`.
fn check_shim(folder: &Path) -> Result<(), ShimError> {
    let failed = |source| ShimError { folder: folder.to_owned(), source };
    let path = folder.to_str().filter(|text| variables::is_path(text) && !text.contains(':'));
    if path.is_none() {
        return Err(failed(Some(io::Error::other("no absolute path that PYTHONPATH can hold"))));
    }
    match shim::is_own(folder) {
        Ok(true) => Ok(()),
        Ok(false) => Err(failed(None)),
        Err(error) => Err(failed(Some(error))),
    }
}

/// The shim first, and then what was there; said twice, it is there once.
fn python_path(shim: &Path, old: Option<&str>) -> String {
    let shim = shim.to_string_lossy();
    let old = old.unwrap_or_default().split(':').filter(|part| !part.is_empty() && *part != shim);
    [&*shim].into_iter().chain(old).collect::<Vec<_>>().join(":")
}

/// This machine, behind what was there.
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
                // It takes typographic quotation marks for its own, and each, doubled, for itself.
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
    fn each_shell_reads_back_what_was_meant() {
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
    fn no_proxy_has_this_machine_behind_what_was_there() {
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
