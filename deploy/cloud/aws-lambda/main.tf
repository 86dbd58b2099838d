# A fedless function on AWS Lambda from `fedless function package --target aws-lambda`, with a role that may write its
# log and read one object store prefix. terraform apply -var package=package-aws-lambda/function.zip -var client=fn-1
terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = { source = "hashicorp/aws", version = ">= 5.60" }
  }
}

variable "client" {
  type        = string
  description = "The client's id, as registered with `fedless fleet add-function`."
}

variable "package" {
  type        = string
  description = "The zip that `fedless function package` made."
}

variable "memory_mb" {
  type    = number
  default = 1024
}

variable "timeout_s" {
  type    = number
  default = 900
}

variable "data_arn" {
  type        = string
  default     = ""
  description = "ARN of the objects that hold this client's data, for instance arn:aws:s3:::bucket/shard/*; empty: none."
}

resource "aws_iam_role" "function" {
  name = "fedless-${var.client}"
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "lambda.amazonaws.com" } }]
  })
}

resource "aws_iam_role_policy_attachment" "log" {
  role       = aws_iam_role.function.name
  policy_arn = "arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"
}

resource "aws_iam_role_policy" "data" {
  count = var.data_arn == "" ? 0 : 1
  role  = aws_iam_role.function.name
  policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "s3:GetObject", Resource = var.data_arn }]
  })
}

resource "aws_s3_bucket" "code" {
  bucket_prefix = "fedless-code-"
}

resource "aws_s3_object" "package" {
  bucket      = aws_s3_bucket.code.id
  key         = "${var.client}.zip"
  source      = var.package
  source_hash = filebase64sha256(var.package)
}

resource "aws_lambda_function" "function" {
  function_name    = "fedless-${var.client}"
  role             = aws_iam_role.function.arn
  runtime          = "python3.11"
  handler          = "cloud_adapters.handlers.aws_lambda.handler"
  architectures    = ["x86_64"]
  memory_size      = var.memory_mb
  timeout          = var.timeout_s
  s3_bucket        = aws_s3_object.package.bucket
  s3_key           = aws_s3_object.package.key
  source_code_hash = filebase64sha256(var.package)
}

# Lambda itself repeats events that fail, twice; the aggregator does that with a fresh claim.
resource "aws_lambda_function_event_invoke_config" "events" {
  function_name          = aws_lambda_function.function.function_name
  maximum_retry_attempts = 0
}

output "function" {
  value = aws_lambda_function.function.function_name
}
