//! Questions that a service outside the network answers, by a subscription of its own: we only
//! keep the events. But a service that was killed leaves its subscription, which never expires.

use crate::event::{RunId, Timestamp};
use crate::notifications::{self, Refusal};
use crate::pipeline::Pipeline;
use crate::pubsub::Message;
use crate::store::View;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::warn;

/// For how long such a service may say nothing. The SDK acknowledges a question as soon as it
/// has it; its parent gives up after 360 s.
const SILENCE: Duration = Duration::from_secs(300);

/// How long it is believed that there is no subscription: of a burst of questions to one revision
/// only the first looks. (One that is there may be gone with its service in the next moment.) (Of such looks, Pub/Sub allows a project 100 a second:
/// <https://cloud.google.com/pubsub/quotas>.)
const BELIEVED: Duration = Duration::from_secs(2);

/// Which subscriptions were not there a moment ago.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    looks: Mutex<HashMap<String, Arc<Look>>>,
}

#[derive(Debug)]
struct Look {
    since: Instant,
    none: OnceCell<()>,
}

// === impl Subscriptions ===

impl Subscriptions {
    /// Whether there is one of this name: none where somebody saw none in the last 2 s, else as
    /// `look` says, which those who ask meanwhile wait for: but not for long, for it may fail, and
    /// so may the next.
    pub(super) async fn has<E, F>(&self, name: &str, look: impl Fn() -> F) -> Result<bool, E>
    where
        F: Future<Output = Result<bool, E>>,
    {
        let known = {
            let mut looks = self.looks.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            if !looks.get(name).is_some_and(|look| look.is_believed()) {
                looks.retain(|_, look| look.is_believed());
                let look = Look { since: Instant::now(), none: OnceCell::new() };
                looks.insert(name.to_owned(), Arc::new(look));
            }
            Arc::clone(&looks[name])
        };
        let none = known.none.get_or_try_init(async || match look().await {
            Ok(false) => Ok(()),
            found => Err(found),
        });
        match tokio::time::timeout(BELIEVED, none).await {
            Ok(Ok(())) => Ok(false),
            Ok(Err(found)) => found,
            Err(_) => look().await,
        }
    }
}

// === impl Look ===

impl Look {
    fn is_believed(&self) -> bool {
        self.since.elapsed() < BELIEVED
    }
}

// === impl Pipeline ===

impl Pipeline {
    /// Looks, later, whether the one who should answer has said that he has the question; where
    /// he has not, tells the asker how to remove what he left behind.
    pub(super) async fn look_outside(&self, run: RunId, message: &Message, subscription: String) {
        // Of a subscription that was left behind, this is the first that an operator can see.
        warn!(%run, subscription, "left to a service that runs outside");
        let view = Arc::clone(&self.dependencies.view);
        let publisher = self.dependencies.publisher.clone();
        let stop = self.stop.clone();
        let attributes = message.attributes.clone();
        let mut looks = self.outside.lock().await;
        while looks.try_join_next().is_some() {}
        looks.spawn(async move {
            tokio::time::sleep(SILENCE).await;
            if is_answered(&*view, run).await {
                return;
            }
            warn!(%run, subscription, "nothing came from the service that runs outside");
            let refusal = Refusal::StaleSubscription { subscription, seconds: SILENCE.as_secs() };
            if let Some(report) =
                notifications::refusal(run, &attributes, Timestamp::now(), &refusal)
            {
                publisher.publish_until(report.message, &stop).await;
            }
        });
    }
}

/// True where it cannot be seen: an exception would be a claim.
async fn is_answered(view: &dyn View, run: RunId) -> bool {
    match view.run_record(run).await {
        Ok(record) => record.acknowledged || record.terminal,
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn of_those_who_ask_together_one_looks_and_soon_another_does() {
        let (subscriptions, looks) = (Subscriptions::default(), Cell::new(0));
        let has = async |name: &str, found: Result<bool, ()>| {
            let look = async || {
                looks.set(looks.get() + 1);
                tokio::time::sleep(Duration::from_millis(100)).await;
                found
            };
            subscriptions.has(name, look).await
        };

        let together = tokio::join!(has("one", Ok(false)), has("one", Ok(true)));
        assert_eq!((together, looks.get()), ((Ok(false), Ok(false)), 1));
        assert_eq!((has("two", Ok(true)).await, looks.get()), (Ok(true), 2), "of another name");
        assert_eq!((has("two", Ok(false)).await, looks.get()), (Ok(false), 3), "it may be gone");

        tokio::time::advance(BELIEVED).await;
        assert_eq!((has("one", Err(())).await, looks.get()), (Err(()), 4), "it may be there");
        assert_eq!((has("one", Ok(true)).await, looks.get()), (Ok(true), 5), "a failure is none");
    }
}
