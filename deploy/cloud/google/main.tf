# A fedless function on Google Cloud Functions (2nd gen) from `fedless function package --target google`: private, one
# invocation for each instance. (cd package-google/source && zip -qr ../source.zip .), then
# terraform apply -var project=P -var source_zip=package-google/source.zip -var client=fn-1 -var invoker=serviceAccount:...
terraform {
  required_version = ">= 1.5"
  required_providers {
    google = { source = "hashicorp/google", version = ">= 6.0" }
  }
}

variable "project" { type = string }
variable "client" { type = string }
variable "source_zip" { type = string }

variable "region" {
  type    = string
  default = "europe-west1"
}

variable "invoker" {
  type        = string
  description = "Who may invoke: the aggregator's service account."
}

provider "google" {
  project = var.project
  region  = var.region
}

resource "google_storage_bucket" "code" {
  name                        = "${var.project}-fedless-code"
  location                    = var.region
  uniform_bucket_level_access = true
}

resource "google_storage_bucket_object" "source" {
  name   = "${var.client}-${filemd5(var.source_zip)}.zip"
  bucket = google_storage_bucket.code.name
  source = var.source_zip
}

resource "google_service_account" "function" {
  account_id = "fedless-${var.client}"
}

resource "google_cloudfunctions2_function" "function" {
  name     = "fedless-${var.client}"
  location = var.region
  build_config {
    runtime     = "python311"
    entry_point = "fedless"
    source {
      storage_source {
        bucket = google_storage_bucket.code.name
        object = google_storage_bucket_object.source.name
      }
    }
  }
  service_config {
    available_memory                 = "1Gi"
    available_cpu                    = "1"
    timeout_seconds                  = 3600
    max_instance_request_concurrency = 1
    service_account_email            = google_service_account.function.email
    environment_variables            = { FEDLESS_TIMEOUT_S = "3600" }
  }
}

resource "google_cloud_run_service_iam_member" "invoker" {
  service  = google_cloudfunctions2_function.function.name
  location = var.region
  role     = "roles/run.invoker"
  member   = var.invoker
}

output "url" {
  value = google_cloudfunctions2_function.function.service_config[0].uri
}
