//! Checks what the pods of questions may do on Pub/Sub, with the credentials of their account.
//!
//! Whether they can create a subscription is checked by creating one, which is deleted at once.

use super::{
    SUBSCRIPTION_RIGHTS, TOPIC_RIGHTS, grant_commands, missing_rights, review_command,
    trial_subscription,
};
use crate::chain::Chain;
use crate::preflight::PreflightCheck;
use crate::pubsub::{Admin, CallError, Connection};

const NAME: &str = "rights of questions on Pub/Sub";

/// The right that creating a subscription shows.
const CREATE: &str = "pubsub.subscriptions.create";

/// A right on a service's own subscriptions.
const DELETE: &str = "pubsub.subscriptions.delete";

/// Checks the rights of questions. The SDK looks for its topic before its first event, and creates
/// a subscription for each question that a service asks.
pub async fn check_question_rights(
    connection: &Connection,
    topic: &str,
    project: &str,
    account: &str,
) -> PreflightCheck {
    let as_account = match connection.as_account(account) {
        Ok(as_account) => as_account,
        Err(error) => return PreflightCheck::unknown(NAME, Chain(&error).to_string(), ""),
    };
    match missing(&as_account, connection, topic).await {
        Ok(missing) => judge(project, account, &missing),
        Err(error) => {
            let review = review_command(account, &connection.topic(topic), &TOPIC_RIGHTS);
            PreflightCheck::unknown(
                NAME,
                format!("they cannot be checked as {account}: {}", error.chain()),
                format!(
                    "gcloud iam service-accounts add-iam-policy-binding {account} \
                     --member user:YOU --role roles/iam.serviceAccountTokenCreator\n\
                     (YOU is the person who runs this) and check again; or list the rights, those \
                     left out are missing:\n{review}"
                ),
            )
        }
    }
}

/// The rights that questions lack.
async fn missing(
    as_account: &Connection,
    ours: &Connection,
    topic: &str,
) -> Result<Vec<&'static str>, CallError> {
    let mut missing = missing_rights(as_account, &as_account.topic(topic), &TOPIC_RIGHTS).await?;
    let trial = trial_subscription(topic);
    let admin = Admin::new(as_account);
    match admin.subscribe(&trial).await {
        Ok(_) => {
            let [consume, get] = SUBSCRIPTION_RIGHTS;
            let resource = as_account.subscription(&trial.name);
            let on_subscription =
                missing_rights(as_account, &resource, &[consume, get, DELETE]).await;
            if admin.delete_subscription(&trial.name).await.is_err() {
                // If we may not delete it either, it expires in a day.
                let _ = Admin::new(ours).delete_subscription(&trial.name).await;
            }
            missing.extend(on_subscription?);
        }
        Err(error) if error.is_denied() => missing.push(CREATE),
        Err(error) => return Err(error),
    }
    Ok(missing)
}

fn judge(project: &str, account: &str, missing: &[&str]) -> PreflightCheck {
    if missing.is_empty() {
        return PreflightCheck::ok(NAME, format!("{account} has all that a service needs"));
    }
    let (lacks, remedy) = (missing.join(", "), grant_commands(project, account));
    if missing.iter().any(|right| TOPIC_RIGHTS.contains(right)) {
        let found = format!("{account} lacks {lacks}: no service answers, most fail without a log");
        return PreflightCheck::fail(NAME, found, remedy);
    }
    let found = format!("{account} lacks {lacks}: no service can ask another");
    PreflightCheck::warn(NAME, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Verdict;

    #[test]
    fn a_missing_right_is_named_with_the_loss() {
        let judge = |missing: &[&str]| judge("p", "a@p", missing);
        assert_eq!(judge(&[]).verdict, Verdict::Ok);
        let silent = judge(&["pubsub.topics.get", CREATE]);
        assert_eq!(silent.verdict, Verdict::Fail);
        assert!(silent.found.contains("lacks pubsub.topics.get, pubsub.subscriptions.create"));
        assert!(silent.remedy.contains("serviceAccount:a@p"), "{}", silent.remedy);
        assert_eq!(judge(&[CREATE]).verdict, Verdict::Warn);
    }
}
