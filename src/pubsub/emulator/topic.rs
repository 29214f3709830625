//! One topic: where a message goes in, and to which subscriptions it goes on.

use std::sync::{Arc, Mutex, MutexGuard};

use super::name::Name;
use super::settings::TopicSettings;
use super::subscription::{Published, Subscription};

/// A topic that exists, or to which somebody still publishes.
#[derive(Debug)]
pub(super) struct Topic {
    pub name: Name,
    pub settings: TopicSettings,
    /// Locked for as long as a request's messages are handed on, so that all subscriptions see
    /// the messages of a topic in one order.
    subscriptions: Mutex<Vec<Arc<Subscription>>>,
}

// === impl Topic ===

impl Topic {
    pub fn new(name: Name, settings: TopicSettings) -> Self {
        Self { name, settings, subscriptions: Mutex::default() }
    }

    /// Hands messages on to every subscription that wants them.
    pub fn publish(&self, messages: &[Published]) {
        for subscription in &*self.lock() {
            subscription.publish(messages);
        }
    }

    pub fn attach(&self, subscription: Arc<Subscription>) {
        self.lock().push(subscription);
    }

    pub fn detach(&self, subscription: &Arc<Subscription>) {
        self.lock().retain(|attached| !Arc::ptr_eq(attached, subscription));
    }

    /// The names of its subscriptions, in no order.
    pub fn subscriptions(&self) -> Vec<Name> {
        self.lock().iter().map(|subscription| subscription.name.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Subscription>>> {
        self.subscriptions.lock().expect("nothing panics while it hands messages on")
    }
}
