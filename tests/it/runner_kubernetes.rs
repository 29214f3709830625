//! Questions as Jobs: what every runner promises, on a real cluster.
//!
//! `tests/cluster/test_contract.py` starts one, and runs this with what it says in the environment.

use crate::runner_contract::every_promise;
use std::sync::Arc;
use twined::runner::kubernetes::job::JobDefaults;
use twined::runner::kubernetes::settings::{NetworkSettings, ServiceFields};
use twined::runner::kubernetes::{KubernetesRunner, Options};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "wants a cluster: tests/cluster/test_contract.py gives it one"]
async fn jobs_keep_every_promise_of_a_runner() {
    let given = |name: &str| std::env::vars().find(|(other, _)| other == name).unwrap().1;
    let options = Options {
        network: JobDefaults {
            namespace: given("TWINED_TEST_NAMESPACE"),
            images: given("TWINED_TEST_IMAGES"),
            topic: "tests.octue.twined.services".into(),
            environment: Vec::new(),
        },
        settings: Arc::new(NetworkSettings::read(SETTINGS, ServiceFields::default()).unwrap()),
        lease: "contract".into(),
        identity: "the-only-one".into(),
        launches: 8,
    };
    let client = KubernetesRunner::client().await.unwrap();
    let runner = KubernetesRunner::start(options, client).await.unwrap();
    every_promise(&runner).await;
    runner.stop().await;
}

const SETTINGS: &str = "
defaults:
  cpus: {default: 100m}
  memory: {default: 64Mi}
  ephemeral_storage: {default: 16Mi}
  service_account: default
";
