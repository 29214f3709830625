//! The resources that a question asks for, checked against the settings.

use crate::event::Sruid;
use crate::event::attributes::{CPUS, EPHEMERAL_STORAGE, MEMORY};
use crate::runner::kubernetes::quantity::Quantity;
use crate::runner::kubernetes::refusal::LaunchRefusal;
use crate::runner::kubernetes::settings::{ResourceLimit, ResourcePolicy, ServiceSettings};
use std::collections::HashMap;
use std::fmt;

/// The resource requests of a question, and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResourceRequests {
    /// CPUs.
    pub cpus: RequestAndLimit,
    /// Memory, in bytes.
    pub memory: RequestAndLimit,
    /// Disk, in bytes.
    pub ephemeral_storage: RequestAndLimit,
}

/// The request of one resource, and its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestAndLimit {
    /// The request.
    pub request: Quantity,
    /// The limit; `None` for no limit.
    pub limit: Option<Quantity>,
}

// === impl ResourceRequests ===

impl ResourceRequests {
    /// The resources that the attributes of a question ask for, and the defaults of the settings
    /// for the others.
    ///
    /// # Errors
    ///
    /// If an attribute is no quantity, or more than the settings allow.
    pub(super) fn from_attributes(
        attributes: &HashMap<String, String>,
        service: &ServiceSettings,
        recipient: Sruid<'_>,
    ) -> Result<Self, LaunchRefusal> {
        let asked = |name: &'static str, parse: Parser| match attributes.get(name) {
            Some(text) => parse(text).map(Some).map_err(|reason| invalid(name, text, &reason)),
            None => Ok(None),
        };
        let checked = |name, asked, amount| RequestAndLimit::new(name, asked, amount, recipient);
        Ok(Self {
            cpus: checked(CPUS, asked(CPUS, parse_cpus)?, &service.cpus)?,
            memory: checked(MEMORY, asked(MEMORY, parse_quantity)?, &service.memory)?,
            ephemeral_storage: checked(
                EPHEMERAL_STORAGE,
                asked(EPHEMERAL_STORAGE, parse_quantity)?,
                &service.ephemeral_storage,
            )?,
        })
    }
}

// === impl RequestAndLimit ===

impl RequestAndLimit {
    fn new(
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
            // The API server refuses a limit below the request.
            ResourceLimit::Quantity(limit) => limit.max(request),
        });
        Ok(Self { request, limit })
    }
}

type Parser = fn(&str) -> Result<Quantity, String>;

fn parse_cpus(text: &str) -> Result<Quantity, String> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && number > 0 => Ok(Quantity::whole(number)),
        Ok(_) | Err(_) => Err("not a whole number of CPUs from 1 to 4294967295".to_owned()),
    }
}

fn parse_quantity(text: &str) -> Result<Quantity, String> {
    match text.parse::<Quantity>() {
        Ok(quantity) if quantity.is_zero() => Err("it must be more than nothing".to_owned()),
        Ok(quantity) => Ok(quantity),
        Err(error) => Err(error.to_string()),
    }
}

/// The text comes from the parent and may be anything: it is escaped, and cut.
fn invalid(name: &str, text: &str, reason: &impl fmt::Display) -> LaunchRefusal {
    let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
    LaunchRefusal::invalid(format!("the question asks for `{shown}` of `{name}`: {reason}"))
}
