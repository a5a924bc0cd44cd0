//! Where an image is asked for, as people read it.

use super::format::printable;
use crate::registry::EndpointReport;

/// A line for each, where there is a choice.
pub(super) fn lines(endpoints: &[EndpointReport]) -> Vec<String> {
    let has_choice = endpoints.iter().any(|endpoint| endpoint.mirror);
    endpoints.iter().filter(|_| has_choice).map(line).collect()
}

/// The same of those that are ill.
pub(super) fn ill(endpoints: &[EndpointReport]) -> Vec<String> {
    let lines = lines(endpoints).into_iter().zip(endpoints);
    lines.filter(|(_, endpoint)| endpoint.rests.is_some()).map(|(line, _)| line).collect()
}

fn line(endpoint: &EndpointReport) -> String {
    let EndpointReport { host, mirror, rests, counts } = endpoint;
    let kind = if *mirror { " (mirror)" } else { "" };
    let what = match counts.asked {
        0 => "not asked".to_owned(),
        1 => "1 request".to_owned(),
        asked => format!("{asked} requests"),
    };
    let parts =
        [(counts.refused, "refused"), (counts.failed, "failed"), (counts.overtaken, "overtaken by another endpoint")];
    let parts: String =
        parts.into_iter().filter(|(count, _)| *count > 0).map(|(count, how)| format!(", {count} {how}")).collect();
    let rests = rests.map(|seconds| format!("; it is tried again in {seconds} s")).unwrap_or_default();
    let last = counts.last_error.as_ref().map(|last| format!("; the last trouble: {}", printable(last)));
    printable(host) + kind + ": " + &what + &parts + &rests + &last.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Counts;

    #[test]
    fn each_is_named_with_what_came_of_it_where_there_is_a_choice() {
        let primary = EndpointReport { host: "r.io".into(), mirror: false, rests: None, counts: Counts::default() };
        assert!(lines(std::slice::from_ref(&primary)).is_empty());
        let counts = Counts { asked: 7, refused: 1, failed: 2, overtaken: 0, last_error: Some("it is gone".into()) };
        let mirror = EndpointReport { host: "m.io".into(), mirror: true, rests: Some(4), counts };
        let expected = [
            "m.io (mirror): 7 requests, 1 refused, 2 failed; it is tried again in 4 s; the last trouble: it is gone",
            "r.io: not asked",
        ];
        let both = [mirror, primary];
        assert_eq!(lines(&both), expected);
        assert_eq!(ill(&both), expected[..1]);
    }
}
