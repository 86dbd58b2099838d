"""The helper's called side: one short entry file for each platform, all on `fedless.helper.function`."""
