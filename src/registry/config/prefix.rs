//! Which names a prefix of registries.conf means (containers-registries.conf(5), "prefix"; sysregistriesv2 of containers/image 5.36).

/// How much of a name (`HOST[:PORT]/REPOSITORY`) a prefix covers; `None`: it does not mean it.
///
/// As in podman, a host means itself with any port, too.
pub(super) fn covered(name: &str, prefix: &str) -> Option<usize> {
    let end = match prefix.strip_prefix('*').filter(|domain| domain.starts_with('.')) {
        Some(domain) => {
            let start = name.find(domain)?;
            if name.get(..start)?.contains('/') {
                return None;
            }
            start.checked_add(domain.len())?
        }
        None => name.starts_with(prefix).then_some(prefix.len())?,
    };
    let next = name.get(end..)?.chars().next();
    matches!(next, None | Some(':' | '/' | '@')).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_where_parts_of_a_name_do() {
        let cases = [
            ("example.com/a/b", "example.com", Some(11)),
            ("example.com/a/b", "example.com/a", Some(13)),
            ("example.com/a/b", "example.com/a/b", Some(15)),
            ("example.com/a/b", "example.com/a/b/c", None),
            ("example.com/ab", "example.com/a", None),
            ("example.com:5000/a", "example.com", Some(11)),
            ("example.com:5000/a", "example.com:5000", Some(16)),
            ("example.com:50001/a", "example.com:5000", None),
            ("example.community/a", "example.com", None),
            ("x.example.com/a", "*.example.com", Some(13)),
            ("x.y.example.com/a", "*.example.com", Some(15)),
            ("x.example.com:5000/a", "*.example.com", Some(13)),
            ("example.com/a", "*.example.com", None),
            ("host.io/x.example.com", "*.example.com", None),
            ("x.example.company/a", "*.example.com", None),
            ("x.example.com/a", "*", None),
        ];
        for (name, prefix, end) in cases {
            assert_eq!(covered(name, prefix), end, "{name} {prefix}");
        }
    }
}
