//! The topics and subscriptions, by name.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use google_cloud_googleapis::pubsub::v1 as google;
use tonic::Status;

use super::name::{self, DELETED_TOPIC, ResourceKind, ResourceName};
use super::page::{Page, first_page, items_in_project};
use super::settings::{SubscriptionSettings, TopicSettings};
use super::subscription::{Subscription, SubscriptionEnd};
use super::topic::Topic;

/// All topics and subscriptions. Order of locks: the tables, a topic, a subscription.
#[derive(Debug)]
pub(super) struct Directory {
    /// If set, all projects are this one.
    project: Option<String>,
    tables: RwLock<Tables>,
}

/// A resource that a client named.
pub(super) struct RequestedResource {
    /// The name in the tables.
    name: ResourceName,
    /// The project in the client's name.
    project: String,
    /// The client's name.
    text: String,
    kind: ResourceKind,
}

#[derive(Debug, Default)]
struct Tables {
    topics: BTreeMap<ResourceName, Arc<Topic>>,
    subscriptions: BTreeMap<ResourceName, SubscriptionEntry>,
}

/// A subscription and its topic; `None` if the topic was deleted.
#[derive(Clone, Debug)]
struct SubscriptionEntry {
    subscription: Arc<Subscription>,
    topic: Option<Arc<Topic>>,
}

// === impl Directory ===

impl Directory {
    pub(super) fn new(project: Option<String>) -> Self {
        Self { project, tables: RwLock::default() }
    }

    /// Parses a client's name of a resource.
    pub(super) fn requested(
        &self,
        kind: ResourceKind,
        text: &str,
    ) -> Result<RequestedResource, name::NameError> {
        let ResourceName { project, id } = ResourceName::parse(kind, text)?;
        let name = ResourceName { project: self.stored_project(&project), id };
        Ok(RequestedResource { name, project, text: text.to_owned(), kind })
    }

    pub(super) fn create_topic(&self, topic: google::Topic) -> Result<google::Topic, Status> {
        let requested = self.requested(ResourceKind::Topic, &topic.name).map_err(invalid)?;
        let settings = TopicSettings::new(topic)?;
        match self.write().topics.entry(requested.name.clone()) {
            Entry::Occupied(_) => Err(requested.already_exists()),
            Entry::Vacant(entry) => {
                let topic = entry.insert(Arc::new(Topic::new(requested.name, settings)));
                Ok(topic.settings.describe(requested.text))
            }
        }
    }

    pub(super) fn topic(&self, text: &str) -> Result<(Arc<Topic>, RequestedResource), Status> {
        let requested = self.requested(ResourceKind::Topic, text).map_err(invalid)?;
        match self.read().topics.get(&requested.name) {
            Some(topic) => Ok((Arc::clone(topic), requested)),
            None => Err(requested.missing()),
        }
    }

    pub(super) fn describe_topic(&self, text: &str) -> Result<google::Topic, Status> {
        let (topic, requested) = self.topic(text)?;
        Ok(topic.settings.describe(requested.text))
    }

    /// Deletes a topic. Its subscriptions remain, with their messages.
    pub(super) fn delete_topic(&self, text: &str) -> Result<(), Status> {
        let requested = self.requested(ResourceKind::Topic, text).map_err(invalid)?;
        let mut tables = self.write();
        let topic = tables.topics.remove(&requested.name).ok_or_else(|| requested.missing())?;
        for name in topic.subscriptions() {
            if let Some(entry) = tables.subscriptions.get_mut(&name) {
                entry.topic = None;
            }
        }
        Ok(())
    }

    pub(super) fn list_topics(
        &self,
        project: &str,
        size: i32,
        token: &str,
    ) -> Result<Page<google::Topic>, Status> {
        let project = name::parse_project(project).map_err(invalid)?;
        let tables = self.read();
        let found = items_in_project(&tables.topics, self.stored_project(project), token);
        let described = found.map(|topic| {
            topic.settings.describe(ResourceName::format(
                ResourceKind::Topic,
                project,
                &topic.name.id,
            ))
        });
        first_page(described, size, |last| last_part(&last.name))
    }

    pub(super) fn create_subscription(
        &self,
        subscription: google::Subscription,
    ) -> Result<google::Subscription, Status> {
        let requested =
            self.requested(ResourceKind::Subscription, &subscription.name).map_err(invalid)?;
        let requested_topic =
            self.requested(ResourceKind::Topic, &subscription.topic).map_err(invalid)?;
        let (settings, filter) = SubscriptionSettings::new(subscription)?;

        let mut tables = self.write();
        let Tables { topics, subscriptions } = &mut *tables;
        let Entry::Vacant(entry) = subscriptions.entry(requested.name.clone()) else {
            return Err(requested.already_exists());
        };
        let topic = topics.get(&requested_topic.name).ok_or_else(|| requested_topic.missing())?;
        let subscription = Arc::new(Subscription::new(requested.name, settings, filter));
        topic.attach(Arc::clone(&subscription));
        let described = subscription.settings.describe(requested.text, requested_topic.text, false);
        entry.insert(SubscriptionEntry { subscription, topic: Some(Arc::clone(topic)) });
        Ok(described)
    }

    pub(super) fn subscription(&self, text: &str) -> Result<Arc<Subscription>, Status> {
        let requested = self.requested(ResourceKind::Subscription, text).map_err(invalid)?;
        match self.read().subscriptions.get(&requested.name) {
            Some(entry) => Ok(Arc::clone(&entry.subscription)),
            None => Err(requested.missing()),
        }
    }

    pub(super) fn describe_subscription(&self, text: &str) -> Result<google::Subscription, Status> {
        let requested = self.requested(ResourceKind::Subscription, text).map_err(invalid)?;
        let tables = self.read();
        let entry = tables.subscriptions.get(&requested.name).ok_or_else(|| requested.missing())?;
        Ok(self.describe(entry, &requested.project))
    }

    pub(super) fn delete_subscription(&self, text: &str) -> Result<(), Status> {
        let requested = self.requested(ResourceKind::Subscription, text).map_err(invalid)?;
        let removed = self.write().subscriptions.remove(&requested.name);
        let SubscriptionEntry { subscription, topic } =
            removed.ok_or_else(|| requested.missing())?;
        if let Some(topic) = topic {
            topic.detach(&subscription);
        }
        subscription.close(SubscriptionEnd::Deleted);
        Ok(())
    }

    /// Detaches a subscription from its topic, and drops its messages.
    pub(super) fn detach_subscription(&self, text: &str) -> Result<(), Status> {
        let requested = self.requested(ResourceKind::Subscription, text).map_err(invalid)?;
        let tables = self.read();
        let entry = tables.subscriptions.get(&requested.name).ok_or_else(|| requested.missing())?;
        if let Some(topic) = &entry.topic {
            topic.detach(&entry.subscription);
        }
        entry.subscription.close(SubscriptionEnd::Detached);
        Ok(())
    }

    pub(super) fn list_subscriptions(
        &self,
        project: &str,
        size: i32,
        token: &str,
    ) -> Result<Page<google::Subscription>, Status> {
        let project = name::parse_project(project).map_err(invalid)?;
        let tables = self.read();
        let found = items_in_project(&tables.subscriptions, self.stored_project(project), token);
        let described = found.map(|entry| self.describe(entry, project));
        first_page(described, size, |last| last_part(&last.name))
    }

    /// The names of a topic's subscriptions.
    pub(super) fn list_topic_subscriptions(
        &self,
        topic: &str,
        size: i32,
        token: &str,
    ) -> Result<Page<String>, Status> {
        let (topic, requested) = self.topic(topic)?;
        let format = |name: ResourceName| {
            let project = self.answered_project(&name.project, &requested.project);
            ResourceName::format(ResourceKind::Subscription, project, &name.id)
        };
        let mut names: Vec<String> = topic.subscriptions().into_iter().map(format).collect();
        names.sort_unstable();
        first_page(names.into_iter().filter(|name| token < &**name), size, String::clone)
    }

    pub(super) fn has_subscription(&self, text: &str) -> bool {
        let Ok(requested) = self.requested(ResourceKind::Subscription, text) else { return false };
        self.read().subscriptions.contains_key(&requested.name)
    }

    /// Drops the messages past the retention of their subscription.
    pub(super) fn drop_expired(&self) {
        for entry in self.read().subscriptions.values() {
            entry.subscription.drop_expired();
        }
    }

    fn describe(&self, entry: &SubscriptionEntry, project: &str) -> google::Subscription {
        let SubscriptionEntry { subscription, topic } = entry;
        let name = ResourceName::format(ResourceKind::Subscription, project, &subscription.name.id);
        let topic = match topic {
            None => DELETED_TOPIC.to_owned(),
            Some(topic) => {
                let project = self.answered_project(&topic.name.project, project);
                ResourceName::format(ResourceKind::Topic, project, &topic.name.id)
            }
        };
        subscription.settings.describe(name, topic, subscription.is_detached())
    }

    /// The project in the tables for a client's project.
    fn stored_project(&self, project: &str) -> String {
        self.project.as_deref().unwrap_or(project).to_owned()
    }

    /// The project of a resource in an answer to a client.
    fn answered_project<'a>(&self, stored: &'a str, client: &'a str) -> &'a str {
        if self.project.is_some() { client } else { stored }
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().expect("no code panics while it holds this lock")
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().expect("no code panics while it holds this lock")
    }
}

// === impl RequestedResource ===

impl RequestedResource {
    fn missing(&self) -> Status {
        Status::not_found(format!("{} does not exist (resource={})", self.kind, self.text))
    }

    fn already_exists(&self) -> Status {
        Status::already_exists(format!("{} already exists (resource={})", self.kind, self.text))
    }
}

pub(super) fn invalid(error: name::NameError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// The last part of a full name.
fn last_part(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}
