"""The dashboard: what a sequence of snapshots looks like on a screen. It knows no source of snapshots."""
