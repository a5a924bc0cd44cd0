//! The variables that name proxies. Whether a proxy answers is seen where an image is asked for.

use super::{Finding, Setting};
use crate::registry::{ProxyUrl, proxy_url};

pub(super) fn look(setting: &Setting) -> Vec<Finding> {
    judge(&setting.proxies)
}

fn judge(variables: &[(String, String)]) -> Vec<Finding> {
    let is_list = |name: &str| name.eq_ignore_ascii_case("NO_PROXY");
    let urls = variables.iter().filter(|(name, value)| !is_list(name) && !value.is_empty());
    let mut found: Vec<_> = urls.map(|(name, value)| judge_url(name, value)).collect();
    found.extend(variables.iter().filter_map(|(name, value)| differing(name, value, variables)));
    if found.is_empty() {
        found.push(Finding::ok("no variable names a proxy"));
    }
    found
}

fn judge_url(name: &str, value: &str) -> Finding {
    match proxy_url(value) {
        ProxyUrl::Good(url) => Finding::ok(format!("{name} names the proxy {url}")),
        // The value may hold a password.
        ProxyUrl::Broken => Finding::problem(
            format!("{name} is not the URL of a proxy"),
            "crfs passes over it, and asks registries directly",
            format!("set {name}=http://HOST:PORT, or unset it"),
        ),
        ProxyUrl::Scheme(scheme) => Finding::problem(
            format!("{name} names a proxy of the kind {scheme:?}"),
            "crfs speaks to proxies by http and https only",
            format!("set {name}=http://HOST:PORT, or unset it"),
        ),
    }
}

/// The same variable in lower case wins in some programs, and loses in others.
fn differing(name: &str, value: &str, all: &[(String, String)]) -> Option<Finding> {
    let lower = name.to_ascii_lowercase();
    let other = all.iter().find(|(other, _)| *other == lower && lower != name)?;
    (other.1 != value).then(|| {
        Finding::note(
            format!("{name} and {lower} differ"),
            format!("crfs goes by {name}, and other programs may go by {lower}"),
            format!("give both the same value, or unset {lower}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn judged(variables: &[(&str, &str)]) -> Vec<Finding> {
        let owned: Vec<_> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        judge(&owned)
    }

    #[test]
    fn what_is_no_proxy_is_told_without_its_password() {
        assert_eq!(judged(&[])[0].verdict, Verdict::Ok);
        for (value, verdict) in [
            ("http://user:hunter2@proxy:3128", Verdict::Ok),
            ("proxy:3128", Verdict::Ok),
            ("http://user:hunter2@proxy:port", Verdict::Problem),
            ("ftp://user:hunter2@proxy", Verdict::Problem),
            ("http://", Verdict::Problem),
        ] {
            let found = judged(&[("HTTPS_PROXY", value), ("NO_PROXY", "localhost")]);
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].verdict, verdict, "{found:?}");
            assert!(!format!("{found:?}").contains("hunter2"), "{found:?}");
        }
    }

    #[test]
    fn two_spellings_of_one_variable_are_noticed() {
        let found = judged(&[("HTTPS_PROXY", "http://a"), ("https_proxy", "http://b")]);
        assert_eq!(found.last().unwrap().verdict, Verdict::Note);
        let hidden = judged(&[("HTTPS_PROXY", ""), ("https_proxy", "http://b")]);
        assert_eq!(hidden.last().unwrap().verdict, Verdict::Note);
        assert_eq!(judged(&[("HTTPS_PROXY", "")])[0].verdict, Verdict::Ok);
        let same = judged(&[("NO_PROXY", "a"), ("no_proxy", "a")]);
        assert!(same.iter().all(|finding| finding.verdict == Verdict::Ok), "{same:?}");
    }
}
