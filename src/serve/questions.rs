//! What the pods of questions may do. A service that may not look at its topic dies in silence, so it
//! is worth the trouble; but they are not us.

use crate::check::Check;
use crate::config::{KubernetesSettings, PubsubChoice, RunnerSettings, ServeSettings};
use crate::pubsub::Connection;
use crate::pubsub::look::{grant_role, questions};

/// What stands for an account in lines to be copied.
const ACCOUNT: &str = "ACCOUNT";

/// Looks; `account` is the account of Google that they are, where it is known.
pub(super) async fn look(
    settings: &ServeSettings,
    connection: &Connection,
    account: Option<&str>,
) -> Vec<Check> {
    let ServeSettings { topic, project, pubsub: choice, runner, .. } = settings;
    let name = "rights of questions";
    if *choice != PubsubChoice::Google {
        return vec![Check::ok(name, "an emulator has none to give")];
    }
    let pubsub = match (account, runner) {
        (Some(account), _) => questions::look(connection, topic, project, account).await,
        (None, RunnerSettings::Process(_)) => {
            let found = "they have what GOOGLE_APPLICATION_CREDENTIALS names";
            return vec![Check::unknown(name, found, "")];
        }
        (None, RunnerSettings::Kubernetes(kubernetes)) => nameless(project, kubernetes),
    };
    vec![pubsub, elsewhere(project, account.unwrap_or(ACCOUNT))]
}

/// Nobody has said as whom they run.
fn nameless(project: &str, kubernetes: &KubernetesSettings) -> Check {
    let KubernetesSettings { namespace, service_account, .. } = kubernetes;
    Check::unknown(
        "rights of questions on Pub/Sub",
        format!("which account of Google {service_account} is was not seen"),
        format!(
            "name it with `--question-account`; it is an annotation:\n\
             kubectl get serviceaccount {service_account} -n {namespace} -o yaml\n\
             what grants them:\n{}",
            grant_role(project, ACCOUNT)
        ),
    )
}

/// Which buckets and secrets there are, services know.
fn elsewhere(project: &str, account: &str) -> Check {
    let member = format!("--member serviceAccount:{account}");
    Check::unknown(
        "rights of questions elsewhere",
        "a service needs storage.buckets.get and the objects of its buckets; \
         iam.serviceAccounts.signBlob on itself, for signed URLs; \
         secretmanager.versions.access, for its credentials",
        format!(
            "gcloud storage buckets add-iam-policy-binding gs://BUCKET {member} \
             --role roles/storage.objectUser\n\
             gcloud storage buckets add-iam-policy-binding gs://BUCKET {member} \
             --role roles/storage.legacyBucketReader\n\
             gcloud iam roles create twinedSign --project {project} \
             --permissions=iam.serviceAccounts.signBlob\n\
             gcloud iam service-accounts add-iam-policy-binding {account} {member} \
             --role projects/{project}/roles/twinedSign\n\
             gcloud secrets add-iam-policy-binding SECRET {member} \
             --role roles/secretmanager.secretAccessor"
        ),
    )
}
