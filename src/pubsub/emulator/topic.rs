//! A topic, which passes each message on to its subscriptions.

use std::sync::{Arc, Mutex, MutexGuard};

use super::name::ResourceName;
use super::settings::TopicSettings;
use super::subscription::{PublishedMessage, Subscription};

/// A topic. A call may still publish to it after it was deleted.
#[derive(Debug)]
pub(super) struct Topic {
    pub name: ResourceName,
    pub settings: TopicSettings,
    /// Locked while the messages of a request are passed on, so that all subscriptions get the
    /// messages of a topic in the same order.
    subscriptions: Mutex<Vec<Arc<Subscription>>>,
}

// === impl Topic ===

impl Topic {
    pub(super) fn new(name: ResourceName, settings: TopicSettings) -> Self {
        Self { name, settings, subscriptions: Mutex::default() }
    }

    /// Passes messages on to every subscription.
    pub(super) fn publish(&self, messages: &[PublishedMessage]) {
        for subscription in &*self.lock() {
            subscription.publish(messages);
        }
    }

    pub(super) fn attach(&self, subscription: Arc<Subscription>) {
        self.lock().push(subscription);
    }

    pub(super) fn detach(&self, subscription: &Arc<Subscription>) {
        self.lock().retain(|attached| !Arc::ptr_eq(attached, subscription));
    }

    /// The names of its subscriptions, in no order.
    pub(super) fn subscriptions(&self) -> Vec<ResourceName> {
        self.lock().iter().map(|subscription| subscription.name.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Subscription>>> {
        self.subscriptions.lock().expect("no code panics while it holds this lock")
    }
}
