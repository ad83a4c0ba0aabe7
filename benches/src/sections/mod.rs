//! The list of all sections, in the order of the report. A new one is a module and a line here.

mod access_log;
mod billing;
mod check;
mod envoy;
mod flights;
mod growth;
mod memory;
mod predecessor;
mod reading;
mod replicas;
mod stages;
mod start;

use std::time::Duration;

use crate::section::Section;

/// All of them.
pub const ALL: &[Section] = &[
    Section {
        name: "check",
        title: "Check",
        budget: Duration::from_secs(150),
        run: |context| Box::pin(check::run(context)),
    },
    Section {
        name: "envoy",
        title: "Through Envoy",
        budget: Duration::from_mins(2),
        run: |context| Box::pin(envoy::run(context)),
    },
    Section {
        name: "predecessor",
        title: "The predecessor",
        budget: Duration::from_mins(2),
        run: |context| Box::pin(predecessor::run(context)),
    },
    Section {
        name: "access_log",
        title: "Access log",
        budget: Duration::from_secs(30),
        run: |context| Box::pin(access_log::run(context)),
    },
    Section {
        name: "billing",
        title: "Billing",
        budget: Duration::from_secs(25),
        run: |context| Box::pin(billing::run(context)),
    },
    Section {
        name: "replicas",
        title: "PostgreSQL and replicas",
        budget: Duration::from_secs(125),
        run: |context| Box::pin(replicas::run(context)),
    },
    Section {
        name: "memory",
        title: "Memory",
        budget: Duration::from_secs(50),
        run: |context| Box::pin(memory::run(context)),
    },
    Section {
        name: "start",
        title: "Start",
        budget: Duration::from_secs(10),
        run: |context| Box::pin(start::run(context)),
    },
    Section {
        name: "reading",
        title: "A ledger with much in it",
        budget: Duration::from_secs(10),
        run: |context| Box::pin(reading::run(context)),
    },
    Section {
        name: "growth",
        title: "Growth",
        budget: Duration::from_secs(130),
        run: |context| Box::pin(growth::run(context)),
    },
    Section {
        name: "flights",
        title: "One call for many",
        budget: Duration::from_secs(25),
        run: |context| Box::pin(flights::run(context)),
    },
    Section {
        name: "stages",
        title: "Stages",
        budget: Duration::from_secs(105),
        run: |context| Box::pin(stages::run(context)),
    },
];

/// The ones with these names, in the order of the report; all when none is named. Or the first name that is none.
pub fn named(names: &[String]) -> Result<Vec<Section>, &String> {
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|section| section.name != **name)) {
        return Err(unknown);
    }
    let wanted = |section: &&Section| names.is_empty() || names.iter().any(|name| name == section.name);
    Ok(ALL.iter().filter(wanted).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_come_in_the_order_of_the_report_and_an_unknown_one_is_named() {
        assert_eq!(named(&[]).unwrap().len(), ALL.len());
        let names: Vec<String> = ALL.iter().rev().map(|section| section.name.to_owned()).collect();
        let found: Vec<_> = named(&names).unwrap().iter().map(|section| section.name).collect();
        assert_eq!(found, ALL.iter().map(|section| section.name).collect::<Vec<_>>());
        let with_unknown = [ALL[0].name.to_owned(), "nonsense".to_owned()];
        assert_eq!(named(&with_unknown).err(), Some(&with_unknown[1]));
    }

    #[test]
    fn all_sections_together_may_take_a_quarter_of_an_hour_and_no_name_twice() {
        assert!(ALL.iter().map(|section| section.budget).sum::<Duration>() <= Duration::from_mins(15));
        for (at, section) in ALL.iter().enumerate() {
            assert!(ALL[..at].iter().all(|other| other.name != section.name), "{}", section.name);
        }
    }
}
