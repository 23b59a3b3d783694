"""Whether every image that was asked for is there, once all tasks have ended."""

import time

import gevent

from zcompute.cli.client import ApiClient, pages

POLL_S = 0.2


def images_wrong(client: ApiClient, name: str, asked: int, rest_s: float) -> tuple[int, list[str]]:
    """How many images of this name are ACTIVE, and a sentence for each that is not, and for their number: each was
    asked for until that was answered, so there are as many as were accepted. The root's last words are waited for."""
    ends_at_s = time.monotonic() + rest_s
    while True:
        images = [image for image in pages(client, "/v2.1/images/detail", "images") if image["name"] == name]
        if all(image["status"] != "SAVING" for image in images) or time.monotonic() > ends_at_s:
            break
        gevent.sleep(POLL_S)
    wrong = [
        f"image {image['id']} of {image['server']['id']} is {image['status']}"
        for image in images
        if image["status"] != "ACTIVE"
    ]
    if len(images) != asked:
        wrong.append(f"{asked} images were asked for, there are {len(images)}")
    return len(images) - len([line for line in wrong if line.startswith("image ")]), wrong
