//! The Kubernetes runner on a real cluster keeps the promises of every runner.
//!
//! `tests/cluster/test_contract.py` starts the cluster, and runs this with its names in the
//! environment.

use crate::runner_contract::every_promise;
use std::sync::Arc;
use twined::runner::kubernetes::job::JobDefaults;
use twined::runner::kubernetes::settings::{NetworkSettings, ServiceFields};
use twined::runner::kubernetes::{KubernetesOptions, KubernetesRunner};
use twined::tasks::Tasks;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a cluster: tests/cluster/test_contract.py starts one"]
async fn jobs_keep_every_promise_of_a_runner() {
    let given = |name: &str| std::env::vars().find(|(other, _)| other == name).unwrap().1;
    let options = KubernetesOptions {
        defaults: JobDefaults {
            namespace: given("TWINED_TEST_NAMESPACE"),
            images: given("TWINED_TEST_IMAGES"),
            topic: "tests.octue.twined.services".into(),
            environment: Vec::new(),
        },
        settings: Arc::new(NetworkSettings::read(SETTINGS, ServiceFields::default()).unwrap()),
        lease_name: "contract".into(),
        identity: "the-only-one".into(),
        max_concurrent_launches: 8,
    };
    let client = KubernetesRunner::client().await.unwrap();
    let mut tasks = Tasks::new();
    let runner = KubernetesRunner::start(options, client, &mut tasks).await.unwrap();
    every_promise(&runner).await;
    tasks.run(async {}).await.unwrap();
}

const SETTINGS: &str = "
defaults:
  cpus: {default: 100m}
  memory: {default: 64Mi}
  ephemeral_storage: {default: 16Mi}
  service_account: default
";
