//! Looks at what the pods of questions may do on Pub/Sub: as their account, in whose name we ask.
//!
//! Whether they may make a subscription is seen by making one, which is deleted at once.

use super::{SUBSCRIPTION_RIGHTS, TOPIC_RIGHTS, ask_as, grant_role, permitted, probe_of};
use crate::chain::Chain;
use crate::preflight::PreflightCheck as Check;
use crate::pubsub::{Admin, CallError, Connection};

const NAME: &str = "rights of questions on Pub/Sub";

/// What is seen where a subscription is made.
const CREATE: &str = "pubsub.subscriptions.create";

/// What is done with a subscription of one's own.
const DELETE: &str = "pubsub.subscriptions.delete";

/// Looks. The SDK asks for its topic before its first event, and makes a subscription for each question
/// that a service asks.
pub async fn look(connection: &Connection, topic: &str, project: &str, account: &str) -> Check {
    let them = match connection.as_account(account) {
        Ok(them) => them,
        Err(error) => return Check::unknown(NAME, Chain(&error).to_string(), ""),
    };
    match missing(&them, connection, topic).await {
        Ok(missing) => judge(project, account, &missing),
        Err(error) => {
            let ask = ask_as(account, &connection.topic(topic), &TOPIC_RIGHTS);
            Check::unknown(
                NAME,
                format!("they cannot be asked for in the name of {account}: {}", error.chain()),
                format!(
                    "gcloud iam service-accounts add-iam-policy-binding {account} \
                     --member user:YOU --role roles/iam.serviceAccountTokenCreator\n\
                     (YOU is who runs this) and look again, or ask; what is not in the answer is \
                     missing:\n{ask}"
                ),
            )
        }
    }
}

/// Which rights they lack.
async fn missing(
    them: &Connection,
    us: &Connection,
    topic: &str,
) -> Result<Vec<&'static str>, CallError> {
    let mut missing = lacks(them, &them.topic(topic), &TOPIC_RIGHTS).await?;
    let probe = probe_of(topic);
    let admin = Admin::new(them);
    match admin.subscribe(&probe).await {
        Ok(_) => {
            let [consume, get] = SUBSCRIPTION_RIGHTS;
            let rights = [consume, get, DELETE];
            let lacks = lacks(them, &them.subscription(&probe.name), &rights).await;
            if admin.delete_subscription(&probe.name).await.is_err() {
                // Where we may not either it is gone in a day.
                let _ = Admin::new(us).delete_subscription(&probe.name).await;
            }
            missing.extend(lacks?);
        }
        Err(error) if error.is_denied() => missing.push(CREATE),
        Err(error) => return Err(error),
    }
    Ok(missing)
}

async fn lacks(
    them: &Connection,
    resource: &str,
    rights: &[&'static str],
) -> Result<Vec<&'static str>, CallError> {
    let had = permitted(them, resource, rights).await?;
    Ok(rights.iter().copied().filter(|right| !had.iter().any(|had| had == right)).collect())
}

fn judge(project: &str, account: &str, missing: &[&str]) -> Check {
    if missing.is_empty() {
        return Check::ok(NAME, format!("{account} has all that a service needs"));
    }
    let (lacks, remedy) = (missing.join(", "), grant_role(project, account));
    if missing.iter().any(|right| TOPIC_RIGHTS.contains(right)) {
        let found = format!("{account} lacks {lacks}: no service answers, and most die in silence");
        return Check::fail(NAME, found, remedy);
    }
    Check::warn(NAME, format!("{account} lacks {lacks}: no service can ask another"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::Verdict;

    #[test]
    fn what_is_lacking_is_named_with_what_it_keeps_from_working() {
        let judge = |missing: &[&str]| judge("p", "a@p", missing);
        assert_eq!(judge(&[]).verdict, Verdict::Ok);
        let silent = judge(&["pubsub.topics.get", CREATE]);
        assert_eq!(silent.verdict, Verdict::Fail);
        assert!(silent.found.contains("lacks pubsub.topics.get, pubsub.subscriptions.create"));
        assert!(silent.remedy.contains("serviceAccount:a@p"), "{}", silent.remedy);
        assert_eq!(judge(&[CREATE]).verdict, Verdict::Warn);
    }
}
