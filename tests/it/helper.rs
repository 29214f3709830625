//! Starts the helper program of the tests, `tests/helpers/test_helper.rs`: a process that a test
//! can kill, or give environment variables of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// The helper program, built from the sources that this test was built from: `cargo test --test it`
/// does not build examples.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let artifacts = Path::new(env!("CARGO_BIN_EXE_twined")).parent().unwrap();
    let profile = match artifacts.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--offline", "--example", "test-helper"])
        .args(["--profile", profile, "--target-dir"])
        .arg(artifacts.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(built.success(), "the helper program was not built");
    artifacts.join("examples/test-helper")
});

/// A command of the helper program.
pub(crate) fn command(name: &str) -> Command {
    let mut command = Command::new(&*PROGRAM);
    command.arg(name);
    command
}
