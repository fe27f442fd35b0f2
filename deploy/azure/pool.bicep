// Not run: nobody here has an Azure account. The properties are those that Microsoft.App has at this api-version.
// az deployment group create -g GROUP -f deploy/azure/pool.bicep -p executorId=$(az ad signed-in-user show --query id -o tsv)
@description('Name of the pool, unique in its region.')
param name string = 'python-sessions'
param location string = resourceGroup().location
@description('Who may run code: the object id of a user, or of the identity of an app.')
param executorId string
@allowed(['User', 'ServicePrincipal', 'Group'])
param executorType string = 'User'
@minValue(1)
@maxValue(600)
param maxConcurrentSessions int = 100
@minValue(300)
@maxValue(3600)
param cooldownSeconds int = 300
@allowed(['EgressDisabled', 'EgressEnabled'])
param network string = 'EgressDisabled'

// Azure ContainerApps Session Executor
var executorRole = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', '0fb8eba5-a2bb-4abe-b1c1-49dfad359bb0')

resource pool 'Microsoft.App/sessionPools@2025-07-01' = {
  name: name
  location: location
  properties: {
    poolManagementType: 'Dynamic'
    containerType: 'PythonLTS'
    scaleConfiguration: { maxConcurrentSessions: maxConcurrentSessions }
    dynamicPoolConfiguration: {
      lifecycleConfiguration: { lifecycleType: 'Timed', cooldownPeriodInSeconds: cooldownSeconds }
    }
    sessionNetworkConfiguration: { status: network }
  }
}

resource executor 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: pool
  name: guid(pool.id, executorId, executorRole)
  properties: { roleDefinitionId: executorRole, principalId: executorId, principalType: executorType }
}

@description('ACASessions__SessionsHttpClient__Endpoint')
output endpoint string = pool.properties.poolManagementEndpoint
