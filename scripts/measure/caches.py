"""Configurations of the caches that are run before a registry. docs/fleets.md shows those that a fleet needs."""


def registry(port, storage, upstream=None):
    """distribution, and docker-registry; `upstream`: it is a pull-through cache before that port."""
    proxy = f"proxy: {{remoteurl: 'http://127.0.0.1:{upstream}'}}\n" if upstream else ""
    return f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n{proxy}"


def nginx(port, place, server, more=""):
    """`server`: what is in its only server; `more`: beside it. All that it writes is below `place`."""
    return f"""
daemon off; user root; pid {place}/pid; error_log {place}/error; events {{ }}
http {{
  access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/temp;
  fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;
  proxy_cache_path {place}/cache keys_zone=z:10m max_size=2g; proxy_http_version 1.1;
  {more}
  server {{ listen 127.0.0.1:{port}; {server} }} }}
"""


def nginx_plain(port, place, upstream):
    """It keeps nothing."""
    return nginx(port, place, f"location / {{ proxy_pass http://127.0.0.1:{upstream}; }}")


def nginx_slices(port, place, upstream):
    """Slices of blobs, each fetched once; tags and manifests are always asked for."""
    more = f"upstream registry {{ server 127.0.0.1:{upstream}; keepalive 16; }}"
    server = """
    location / { proxy_pass http://registry; proxy_set_header Connection ""; }
    location ~ ^/v2/.+/blobs/sha256: {
      proxy_pass http://registry; proxy_set_header Connection "";
      slice 1m; proxy_set_header Range $slice_range;
      proxy_cache z; proxy_cache_key $uri$slice_range; proxy_cache_valid 200 206 30d;
      proxy_cache_lock on; proxy_cache_lock_timeout 1m; proxy_cache_lock_age 1m;
    }
"""
    return nginx(port, place, server, more)


def haproxy(port, upstream):
    return f"""
global
  maxconn 1000
defaults
  mode http
  timeout connect 10s
  timeout client 60s
  timeout server 60s
cache c
  total-max-size 1000
  max-object-size 300000000
  max-age 3600
frontend f
  bind 127.0.0.1:{port}
  http-request cache-use c
  http-response cache-store c
  default_backend b
backend b
  server s 127.0.0.1:{upstream}
"""
