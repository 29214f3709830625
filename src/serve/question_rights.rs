//! Checks what the pods of questions may do. A service without the rights on its topic exits
//! without a log. The daemon itself needs none of these rights.

use crate::config::{KubernetesSettings, PubsubChoice, RunnerSettings, ServeSettings};
use crate::preflight::PreflightCheck;
use crate::pubsub::Connection;
use crate::pubsub::preflight::grant_commands;
use crate::pubsub::preflight::questions::check_question_rights;

/// Placeholder for an account in commands to copy.
const ACCOUNT: &str = "ACCOUNT";

/// Checks the rights of questions. `account` is their Google service account, if it is known.
pub(super) async fn check(
    settings: &ServeSettings,
    connection: &Connection,
    account: Option<&str>,
) -> Vec<PreflightCheck> {
    let ServeSettings { topic, project, pubsub, runner, .. } = settings;
    let name = "rights of questions";
    if *pubsub != PubsubChoice::Google {
        return vec![PreflightCheck::ok(name, "not needed for an emulator")];
    }
    let on_pubsub = match (account, runner) {
        (Some(account), _) => check_question_rights(connection, topic, project, account).await,
        (None, RunnerSettings::Process(_)) => {
            let found = "those of the file GOOGLE_APPLICATION_CREDENTIALS";
            return vec![PreflightCheck::unknown(name, found, "")];
        }
        (None, RunnerSettings::Kubernetes(kubernetes)) => unknown_account(project, kubernetes),
    };
    vec![on_pubsub, elsewhere(project, account.unwrap_or(ACCOUNT))]
}

/// The result if the account of questions is not known.
fn unknown_account(project: &str, kubernetes: &KubernetesSettings) -> PreflightCheck {
    let KubernetesSettings { namespace, service_account, .. } = kubernetes;
    PreflightCheck::unknown(
        "rights of questions on Pub/Sub",
        format!("the Google service account of service account {service_account} cannot be read"),
        format!(
            "give it with `--question-account`; it is an annotation:\n\
             kubectl get serviceaccount {service_account} -n {namespace} -o yaml\n\
             to grant the rights:\n{}",
            grant_commands(project, ACCOUNT)
        ),
    )
}

/// Only a service knows its buckets and secrets.
fn elsewhere(project: &str, account: &str) -> PreflightCheck {
    let member = format!("--member serviceAccount:{account}");
    PreflightCheck::unknown(
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
