//! What a question asks for, held against what it may have.

use super::LaunchRefusal;
use crate::event::Sruid;
use crate::event::attributes::{CPUS, EPHEMERAL_STORAGE, MEMORY};
use crate::runner::kubernetes::quantity::Quantity;
use crate::runner::kubernetes::settings::{ResourceLimit, ResourcePolicy, ServiceSettings};
use std::collections::HashMap;
use std::fmt;

/// What a question gets of the resources of a node, and what it is kept to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResourceRequests {
    /// CPUs.
    pub cpus: RequestAndLimit,
    /// Memory, in bytes.
    pub memory: RequestAndLimit,
    /// Disk, in bytes.
    pub ephemeral_storage: RequestAndLimit,
}

/// How much of one resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestAndLimit {
    /// What is kept for it.
    pub request: Quantity,
    /// What it is kept to; none for no limit.
    pub limit: Option<Quantity>,
}

// === impl ResourceRequests ===

impl ResourceRequests {
    /// What the question asks for, else what the settings give.
    ///
    /// # Errors
    ///
    /// Where it asks for no quantity, or for more than the settings let it have.
    pub fn of(
        attributes: &HashMap<String, String>,
        service: &ServiceSettings,
        recipient: Sruid<'_>,
    ) -> Result<Self, LaunchRefusal> {
        let asked = |name: &'static str, read: Read| match attributes.get(name) {
            Some(text) => read(text).map(Some).map_err(|reason| wrong(name, text, &reason)),
            None => Ok(None),
        };
        let share = |name, asked, amount| RequestAndLimit::of(name, asked, amount, recipient);
        Ok(Self {
            cpus: share(CPUS, asked(CPUS, whole)?, &service.cpus)?,
            memory: share(MEMORY, asked(MEMORY, quantity)?, &service.memory)?,
            ephemeral_storage: share(
                EPHEMERAL_STORAGE,
                asked(EPHEMERAL_STORAGE, quantity)?,
                &service.ephemeral_storage,
            )?,
        })
    }
}

// === impl RequestAndLimit ===

impl RequestAndLimit {
    fn of(
        name: &'static str,
        asked: Option<Quantity>,
        amount: &ResourcePolicy,
        recipient: Sruid<'_>,
    ) -> Result<Self, LaunchRefusal> {
        if let (Some(asked), Some(cap)) = (asked, amount.cap)
            && asked > cap
        {
            return Err(LaunchRefusal::denied(format!(
                "the question asks for {asked} of `{name}`, and `{name}.cap` of the network's \
                 settings for `{recipient}` is {cap}: ask for less, or have the cap raised"
            )));
        }
        let request = asked.unwrap_or(amount.default);
        let limit = amount.limit.map(|limit| match limit {
            ResourceLimit::Request => request,
            // The API server takes no limit below the request.
            ResourceLimit::Of(limit) => limit.max(request),
        });
        Ok(Self { request, limit })
    }
}

type Read = fn(&str) -> Result<Quantity, String>;

fn whole(text: &str) -> Result<Quantity, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && number > 0 => Ok(Quantity::whole(number)),
        Ok(_) | Err(_) => Err("not a whole number of CPUs from 1 to 4294967295".to_owned()),
    }
}

fn quantity(text: &str) -> Result<Quantity, String> {
    match text.parse::<Quantity>() {
        Ok(quantity) if quantity.is_zero() => Err("it must be more than nothing".to_owned()),
        Ok(quantity) => Ok(quantity),
        Err(error) => Err(error.to_string()),
    }
}

/// The text is the asker's own, and may be anything: escaped, and not all of it.
fn wrong(name: &str, text: &str, reason: &impl fmt::Display) -> LaunchRefusal {
    let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    LaunchRefusal::wrong(format!("the question asks for `{shown}` of `{name}`: {reason}"))
}
