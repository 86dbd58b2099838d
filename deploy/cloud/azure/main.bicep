// A function app on Flex Consumption (Linux, Python 3.11) with an identity of its own, and storage that takes no keys, for
// `fedless function package --target azure`.
// az deployment group create --resource-group GROUP --template-file main.bicep --parameters client=fn-1
@description('The name of the client that this function is in its fleet.')
param client string

param location string = resourceGroup().location

@description('MB of an instance. Flex Consumption has these sizes only, and bills for the whole instance.')
@allowed([512, 2048, 4096])
param memoryMb int = 2048

@description('At most so many instances. 40 is the least that the plan takes as a limit.')
@minValue(40)
@maxValue(1000)
param instances int = 40

var name = 'fedless-${client}'
var packages = 'packages'
var blobDataOwner = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b')

resource storage 'Microsoft.Storage/storageAccounts@2023-05-01' = {
  name: take('fedless${uniqueString(resourceGroup().id, client)}', 24)
  location: location
  sku: { name: 'Standard_LRS' }
  kind: 'StorageV2'
  properties: { minimumTlsVersion: 'TLS1_2', allowBlobPublicAccess: false, allowSharedKeyAccess: false }

  resource blobs 'blobServices' = {
    name: 'default'

    resource container 'containers' = {
      name: packages
      properties: { publicAccess: 'None' }
    }
  }
}

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: name
  location: location
  kind: 'functionapp'
  sku: { name: 'FC1', tier: 'FlexConsumption' }
  properties: { reserved: true }
}

resource app 'Microsoft.Web/sites@2024-04-01' = {
  name: name
  location: location
  kind: 'functionapp,linux'
  identity: { type: 'SystemAssigned' }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    functionAppConfig: {
      runtime: { name: 'python', version: '3.11' }
      scaleAndConcurrency: { instanceMemoryMB: memoryMb, maximumInstanceCount: instances }
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${storage.properties.primaryEndpoints.blob}${packages}'
          authentication: { type: 'SystemAssignedIdentity' }
        }
      }
    }
    siteConfig: {
      minTlsVersion: '1.2'
      appSettings: [
        { name: 'AzureWebJobsStorage__accountName', value: storage.name }
        { name: 'FEDLESS_TIMEOUT_S', value: '600' }
      ]
    }
  }
}

resource ownsItsPackages 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: storage
  name: guid(storage.id, app.id, blobDataOwner)
  properties: {
    principalId: app.identity.principalId
    principalType: 'ServicePrincipal'
    roleDefinitionId: blobDataOwner
  }
}

output url string = 'https://${app.properties.defaultHostName}/api/fedless'
