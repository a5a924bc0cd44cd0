#!/usr/bin/env python3
"""Pushes an OCI layout into a registry on loopback, unchanged: every tagged image with all it refers to.

    push.py LAYOUT HOST:PORT NAME [USER PASSWORD]

For the fixtures that skopeo would rewrite or refuse: indexes with attestations, Docker types in a layout, manifests without annotations.
OCI distribution specification 1.1, "Push". Python 3.9+, stdlib only.
"""
import base64
import http.client
import json
import os
import sys
import urllib.parse


class Registry:
    def __init__(self, host, name, credentials):
        self.connection = http.client.HTTPConnection(host, timeout=60)
        self.name = name
        self.headers = {}
        if credentials:
            self.headers["Authorization"] = "Basic " + base64.b64encode(":".join(credentials).encode()).decode()

    def ask(self, good, method, path, body=None, **headers):
        self.connection.request(method, path, body, {**self.headers, **headers})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status not in good:
            sys.exit(f"push.py: {method} {path}: {answer.status} {text.decode(errors='replace')}")
        return answer

    def put_blob(self, digest, body):
        if self.ask((200, 404), "HEAD", f"/v2/{self.name}/blobs/{digest}").status == 200:
            return
        place = urllib.parse.urlsplit(self.ask((202,), "POST", f"/v2/{self.name}/blobs/uploads/").headers["Location"])
        query = "&".join(filter(None, [place.query, "digest=" + urllib.parse.quote(digest)]))
        self.ask((201,), "PUT", f"{place.path}?{query}", body, **{"Content-Type": "application/octet-stream"})

    def put_manifest(self, reference, media_type, body):
        self.ask((201,), "PUT", f"/v2/{self.name}/manifests/{reference}", body, **{"Content-Type": media_type})


def push(registry, layout, descriptor, tag):
    """A manifest or index after everything that it refers to. `tag` may be None: then under its digest alone."""
    def read(digest):
        with open(os.path.join(layout, "blobs", *digest.split(":")), "rb") as blob:
            return blob.read()

    body = read(descriptor["digest"])
    document = json.loads(body)
    for child in document.get("manifests", []):
        push(registry, layout, child, None)
    config = [document["config"]] if "config" in document else []
    for blob in config + document.get("layers", []):
        registry.put_blob(blob["digest"], read(blob["digest"]))
    registry.put_manifest(tag or descriptor["digest"], descriptor["mediaType"], body)


def main():
    layout, host, name, *credentials = sys.argv[1:]
    registry = Registry(host, name, credentials)
    with open(os.path.join(layout, "index.json"), "rb") as file:
        images = json.load(file)["manifests"]
    for image in images:
        push(registry, layout, image, image.get("annotations", {}).get("org.opencontainers.image.ref.name"))


if __name__ == "__main__":
    main()
