"""The two messages that everybody carries. Standard library only."""

from typing import Any

BIG, SMALL = "big", "small"


def big() -> dict[str, Any]:
    """An instance of about 30 fields: 1.1 KB."""
    return {
        "uuid": "0d9f2bd8-3e6c-4a77-9a57-0d9c33a1f001",
        "project_id": "6f70656e737461636b2d70726f6a6563",
        "user_id": "a3c1f0d2b4e5968778695a4b3c2d1e0f",
        "display_name": "web-frontend-0001.example.org",
        "hostname": "web-frontend-0001",
        "host": "compute-0417.cell3.example.org",
        "node": "compute-0417.cell3.example.org",
        "availability_zone": "zone-3",
        "vm_state": "active",
        "task_state": "powering-off",
        "power_state": 1,
        "memory_mb": 8192,
        "vcpus": 4,
        "root_gb": 40,
        "ephemeral_gb": 0,
        "image_ref": "3f0c9b54-8a43-4d70-8b3e-2fb90e3b7a10",
        "kernel_id": "",
        "ramdisk_id": "",
        "launch_index": 0,
        "launched_at": "2026-01-17T12:34:56.789012Z",
        "created_at": "2026-01-17T12:34:40.123456Z",
        "updated_at": "2026-01-17T12:35:01.000001Z",
        "config_drive": True,
        "auto_disk_config": False,
        "access_ip_v4": "203.0.113.17",
        "access_ip_v6": "2001:db8::17",
        "key_name": "operations-2026",
        "progress": 100,
        "generation": 7,
        "ramdisk_and_kernel_note": "none: the image boots by itself through UEFI",
        "security_groups": ["default", "web", "ssh-from-operations"],
        "fixed_ips": ["10.31.4.17", "fd00:31:4::17"],
        "root_device_name": "/dev/vda",
        "metadata": {"role": "frontend", "tier": "web", "owner": "team-storefront", "ticket": "OPS-48213"},
        "system_metadata": {
            "image_os_distro": "debian", "image_hw_disk_bus": "virtio", "flavor_name": "m1.large",
            "image_min_ram": "512", "image_architecture": "x86_64",
        },
    }  # fmt: skip


def small() -> dict[str, Any]:
    """A heartbeat-like report: 150 B."""
    return {
        "uuid": "0d9f2bd8-3e6c-4a77-9a57-0d9c33a1f001",
        "host": "compute-0417.cell3.example.org",
        "power_state": 1,
        "seq": 123456,
        "vm_state": "active",
        "at": "2026-01-17T12:35:01Z",
    }


def make(name: str) -> dict[str, Any]:
    """The payload of this name."""
    return big() if name == BIG else small()
