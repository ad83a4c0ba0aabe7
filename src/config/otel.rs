//! OpenTelemetry's own switches, which whoever runs many services sets for all of them.

use super::Config;

/// What switches the export of spans off, by its value.
const SWITCHES: [(&str, &str, &str); 2] = [
    ("OTEL_SDK_DISABLED", "true", "because OTEL_SDK_DISABLED is true"),
    ("OTEL_TRACES_EXPORTER", "none", "because OTEL_TRACES_EXPORTER is none"),
];

impl Config {
    /// Exports no spans where a variable says so that the SDK leaves to its host.
    #[must_use]
    pub fn heed_otel(mut self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let is_set = |name, off| variable(name).is_some_and(|value| value.trim().eq_ignore_ascii_case(off));
        let switch = SWITCHES.iter().find(|(name, off, _)| is_set(name, off));
        if let (Some((.., why)), Some(_)) = (switch, &self.otlp_endpoint) {
            self.otlp_endpoint = None;
            self.given.no_spans = Some(why);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;

    /// The collector's setting where the environment has this variable.
    fn collector(name: &str, value: &str) -> String {
        let otlp_endpoint = Some("http://127.0.0.1:4318".to_owned());
        let config = Config::parse(Options { otlp_endpoint, ..Options::default() }).expect("valid");
        let config = config.heed_otel(|asked| (asked == name).then(|| value.to_owned()));
        let settings = config.describe();
        let told = settings.iter().find(|setting| setting.variable == "OTEL_EXPORTER_OTLP_ENDPOINT").expect("told");
        assert_eq!(config.otlp_endpoint.is_none(), told.value.is_empty());
        told.to_string()
    }

    #[test]
    fn either_switch_exports_no_spans_and_is_named_as_the_reason() {
        for (name, value) in [("OTEL_SDK_DISABLED", "True"), ("OTEL_TRACES_EXPORTER", " none ")] {
            let told = collector(name, value);
            assert!(told.starts_with("OTEL_EXPORTER_OTLP_ENDPOINT=  # because") && told.contains(name), "{told}");
        }
        for (name, value) in [("OTEL_SDK_DISABLED", "false"), ("OTEL_TRACES_EXPORTER", "otlp"), ("X", "true")] {
            assert!(collector(name, value).contains("=http://127.0.0.1:4318"), "{name}={value}");
        }
    }
}
