//! The long help of what tells of the layers of a mount.

pub(in crate::cli) const EXPLAIN: &str = concat!(
    "\
Examples:
  crfs explain /mnt
  crfs explain --cache-dir /srv/cache ghcr.io/a/b
  crfs explain --json /mnt | jq '.layers[] | select(.lazy | not) | .reason'

Fields of --json:
  image, digest           the name, and the digest of the manifest
  mount                   null for an image; of a mount
    id, dir               see `crfs status --json`
    told                  whether its server has told this. Where it does not
                          answer, the layers are told as a new mount of the same
                          image would read them
  wait                    bytes that are fetched before the mount is ready
  layers                  an array, the lowest first, of the fields that
                          `crfs inspect --help` has, and of a mount whose server
                          has told
    since                 requests and fetched, since the mount was ready

For a mount the options about registry and cache are those that it was mounted
with. Nothing is read but manifests and tables of contents.

",
    image_help!(),
    exit_help!()
);

pub(in crate::cli) const HEAT: &str = concat!(
    "\
Examples:
  crfs heat --svg heat.svg /mnt
  crfs heat --svg - /mnt | rsvg-convert > heat.png
  crfs heat --json /mnt | jq '.bytes.unused'

The picture has time from left to right: above the line what came, below it what
readers needed for the first time. Then a strip for each layer, along the bytes
of its contents. Below a strip is when each part was first read. A pointer on a
strip shows figures.

Fields of --json:
  image, digest           the name, and the digest of the manifest
  mount                   null for an image; of a mount: id, dir and told
  bytes                   bytes of contents, by what became of them
    demanded              fetched since a reader asked for them
    foreseen              fetched before a reader asked for them
    cached                read, and in the cache before
    unused                fetched, and not read until now
    idle                  in the cache before, and not read
    missing               neither in the cache nor fetched
  time                    null for an image. Times are milliseconds since the
                          server began to open the image
    ready, now            when all layers were open; when this was asked for
    bin, bins             the length of each of these, and their array, of
      came                bytes that came, as above
      needed, waited      bytes that readers first needed; those waited for
  layers                  an array, the lowest first, each once, of
    number, digest, size  of the blob, in bytes
    contents              bytes of its files; null where it has no index yet
    whole                 it was read whole before the mount was ready
    bytes                 as above
    cells                 at most 512, one after the other, of the same fields,
      needed, came        when any of it was first needed, and came; or null
      waited              whether the reader who first needed it waited

A server that was started anew records anew. The kernel reads ahead, and what it
has read so counts as read. What is read again counts once. A layer of very many
files is recorded in some 8,000 parts; what is read of a part counts as all of
it.

",
    image_help!(),
    exit_help!()
);
