//! docs/METRICS.md as data, and whether what `/metrics` says is what is written there.

use std::collections::{BTreeMap, BTreeSet};

/// What a family may be like.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each says where it is to be found")]
pub struct Family {
    pub kind: String,
    /// By name, every value that there may be; none named: any.
    pub labels: BTreeMap<String, Vec<String>>,
    /// Only with billing.
    pub of_billing: bool,
    /// Of these only while the ledger can be read.
    pub in_ledger: bool,
    /// Only with mTLS.
    pub of_mtls: bool,
    /// Only where spans are exported.
    pub of_spans: bool,
    /// Only where a ledger is shared.
    pub of_replicas: bool,
}

/// One line of `/metrics` with a value.
#[derive(Debug)]
pub struct Sample {
    pub family: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

/// What `/metrics` says, in the text format 0.0.4.
#[derive(Debug, Default)]
pub struct Exposed {
    pub help: BTreeMap<String, String>,
    pub kinds: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

fn in_backticks(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every row of the page that describes a family.
pub fn families() -> BTreeMap<String, Family> {
    let page = include_str!("../../../docs/METRICS.md");
    let mut families = BTreeMap::new();
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind @ ("counter" | "gauge" | "histogram"), labels, says] = cells.as_slice() else { continue };
        let labels = labels.split(';').filter(|label| !label.trim().is_empty()).map(|label| {
            let (name, values) = label.split_once(':').unwrap_or_else(|| panic!("a label without values: {row}"));
            (name.trim().trim_matches('`').to_owned(), in_backticks(values))
        });
        let family = Family {
            kind: (*kind).to_owned(),
            labels: labels.collect(),
            of_billing: says.contains("billing only"),
            in_ledger: says.contains("in the ledger"),
            of_mtls: says.contains("mTLS only"),
            of_spans: says.contains("spans only"),
            of_replicas: says.contains("replicas only"),
        };
        assert!(families.insert(name.trim_matches('`').to_owned(), family).is_none(), "twice: {row}");
    }
    assert!(families.len() > 40, "the page is read: {families:#?}");
    families
}

impl Exposed {
    pub fn parse(text: &str) -> Self {
        let mut exposed = Self::default();
        for line in text.lines() {
            if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
                assert!(exposed.help.insert(name.to_owned(), help.to_owned()).is_none(), "twice: {line}");
            } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                exposed.kinds.insert(name.to_owned(), kind.to_owned());
            } else {
                let sample = exposed.sample(line);
                exposed.samples.push(sample);
            }
        }
        exposed
    }

    fn sample(&self, line: &str) -> Sample {
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty());
        let mut labels: BTreeMap<String, String> = labels
            .map(|label| {
                let (key, value) = label.split_once('=').unwrap_or_else(|| panic!("no label: {line}"));
                (key.to_owned(), value.trim_matches('"').to_owned())
            })
            .collect();
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| {
            name.strip_suffix(suffix).filter(|base| self.kinds.get(*base).is_some_and(|kind| kind == "histogram"))
        });
        labels.remove("le");
        let value = value.parse().unwrap_or_else(|error| panic!("{error}: {line}"));
        Sample { family: of_histogram.unwrap_or(name).to_owned(), labels, value }
    }

    /// The values that a label of a family has.
    pub fn values(&self, family: &str, label: &str) -> BTreeSet<String> {
        let samples = self.samples.iter().filter(|sample| sample.family == family);
        samples.filter_map(|sample| sample.labels.get(label).cloned()).collect()
    }

    /// Nothing may be said that is not on the page; what is missing here may be for want of its setting.
    pub fn assert_documented(&self) {
        let families = families();
        for (name, kind) in &self.kinds {
            let family = families.get(name).unwrap_or_else(|| panic!("{name} is not in docs/METRICS.md"));
            assert_eq!(kind, &family.kind, "{name}");
        }
        for Sample { family, labels, value } in &self.samples {
            let documented = &families[family].labels;
            assert_eq!(labels.keys().collect::<Vec<_>>(), documented.keys().collect::<Vec<_>>(), "{family}");
            for (label, given) in labels {
                let known = &documented[label];
                assert!(known.is_empty() || known.contains(given), "{family}: {label}=\"{given}\" is not documented");
            }
            assert!(*value >= 0.0, "{family} {labels:?} is {value}");
        }
    }
}
